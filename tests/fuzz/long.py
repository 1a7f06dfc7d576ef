"""`make fuzz`: a real server on tiny weights, and Schemathesis. `python -m tests.fuzz.long SECONDS`"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.e2e.conftest import Server
from tests.fuzz.schemathesis_run import schemathesis

SONG_WITHIN_S = 300  # some requests wait for theirs, behind all the others


def main(seconds: float) -> int:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), Path(folder) / "tiny")
        try:
            server.start()
            run = schemathesis(server.address, seconds, Path(folder), patience_s=SONG_WITHIN_S)
        finally:
            server.stop()
    sys.stdout.write(run.stdout)
    return run.returncode


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
