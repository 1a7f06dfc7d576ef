"""`make openapi`: docs/openapi.json as the code has it now."""

from serve_app.edge import EdgeOptions, build_api
from serve_app.openapi import FILE, written
from tests.contract.conftest import FakeDesk

if __name__ == "__main__":
    FILE.write_text(written(build_api(FakeDesk(), EdgeOptions()).openapi()))
