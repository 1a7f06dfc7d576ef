"""Addresses, names and ids made up to reach what nobody is to reach."""

from __future__ import annotations

import asyncio
import re
import string
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serve_app.artifacts.local import LocalArtifacts
from serve_app.edge import EdgeOptions, build_api
from tests.contract.conftest import FakeDesk

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

SECRET = b"nobody is to read this"
LINK, FOLDER = f"{'a' * 32}.mp3", f"{'b' * 32}.mp3"
NAMES = ("", ".", "..", "etc", "passwd", "jobs.db", "secret.mp3", LINK, FOLDER, f"aa/{LINK}", "~", "C:", "file:", "ab")
PARTS = (
    st.sampled_from(NAMES)
    | st.text(max_size=12)
    | st.sampled_from(["\0", "\u2025", "\uff0e\uff0e", "%2e%2e", "a" * 5000])
)
PATHS = st.lists(PARTS, min_size=1, max_size=6).flatmap(
    lambda parts: st.sampled_from(["/", "\\", "//", "%2f", "%5c", "\u2215", "\0", "/./", ";"]).map(
        lambda by: by.join(parts)
    )
)
TABLE = [
    *(
        "/etc/passwd",
        "../secret.mp3",
        "..\\secret.mp3",
        "%2e%2e%2fsecret.mp3",
        "....//secret.mp3",
        "file:///etc/passwd",
    ),
    *("\0", "secret.mp3\0.mp3", LINK, FOLDER, f"aa/{LINK}", "x" * 60_000, "http://127.0.0.1/", "//host/share", "~root"),
    *(
        ".",
        "..",
        "*",
        "?",
        "CON",
        "ab/.draft-x",
        "\u202e3pm.terces",
        "🎵" * 300,
        f"{'A' * 32}.mp3",
        f"{'a' * 32}.mp3\n",
    ),
]


@dataclass
class FolderDesk(FakeDesk):
    """Its tracks are in a folder, as the server's are."""

    folder: Path = Path()

    async def open_track(self, ref: str) -> Any:
        return await LocalArtifacts(self.folder).open(ref)


@pytest.fixture
def app(tmp_path: Path) -> ASGIApp:
    """Beside the folder of tracks lies a secret, and in it a link to the secret."""
    (tmp_path / "secret.mp3").write_bytes(SECRET)
    audio = tmp_path / "audio"
    for name in ("aa", f"bb/{FOLDER}"):
        (audio / name).mkdir(parents=True)
    (audio / "aa" / LINK).symlink_to(tmp_path / "secret.mp3")
    return build_api(FolderDesk(folder=tmp_path), EdgeOptions())


async def asked(app: ASGIApp, method: str, path: str, query: bytes = b"", body: bytes = b"") -> tuple[int, bytes]:
    """Status and content. No client's library stands between, which would tidy an address up."""
    raw = path.encode("utf-8", "surrogatepass")
    scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": quote(raw).encode()}
    scope |= {"query_string": query, "headers": [], "scheme": "http", "server": ("server", 80), "root_path": ""}
    got: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        got.append(message)

    await app(scope, receive, send)
    return got[0]["status"], b"".join(message.get("body", b"") for message in got)


def times_encoded(text: str, times: int) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    for _ in range(times):
        raw = quote(raw, safe="").encode()
    return (
        raw
        if times
        else quote(raw, safe=string.punctuation.replace("%", "").replace("&", "").replace("#", "")).encode()
    )


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_address_of_a_track_reads_anything_else(app: ASGIApp, method: str) -> None:
    with asyncio.Runner() as runner:

        @settings(max_examples=300, deadline=None)
        @given(PATHS, st.integers(0, 3))
        def ask(path: str, times: int) -> None:
            status, content = runner.run(asked(app, method, "/v1/audio", b"path=" + times_encoded(path, times)))
            assert status in (400, 403, 404)
            assert SECRET not in content

        for path in TABLE:
            ask = example(path, 0)(example(path, 1)(example(path, 2)(ask)))
        ask()


def with_parameters() -> Iterator[tuple[str, str]]:
    for route in build_api(FakeDesk(), EdgeOptions()).routes:
        for method in sorted(getattr(route, "methods", None) or ()):
            if "{" in (path := str(getattr(route, "path", ""))):
                yield method, path


@pytest.mark.parametrize(("method", "route"), list(with_parameters()))
def test_no_id_in_a_path_reaches_anything_else(app: ASGIApp, method: str, route: str) -> None:
    with asyncio.Runner() as runner:

        @settings(max_examples=100, deadline=None)
        @given(PATHS)
        def ask(path: str) -> None:
            address = re.sub(r"\{[^}]*\}", lambda _: path, route)
            status, content = runner.run(asked(app, method, address))
            assert status in (307, 400, 401, 403, 404, 405, 422, 501)
            assert SECRET not in content

        for path in TABLE:
            ask = example(path)(ask)
        ask()


@pytest.mark.parametrize("field", ["src_audio_path", "reference_audio_path"])
def test_no_path_of_the_server_is_taken_for_a_source(app: ASGIApp, field: str) -> None:
    for path in TABLE:
        if re.search(r"[/\\:]", path):
            body = f'{{"task_type": "cover", "{field}": {path!r}}}'.replace("'", '"').encode()
            status, content = asyncio.run(asked(app, "POST", "/release_task", body=body))
            assert status == 400
            assert SECRET not in content


@asynccontextmanager
async def connected(desk: FakeDesk) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build_api(desk, EdgeOptions()))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


@settings(max_examples=100, deadline=None)
@given(PATHS)
@example("../../../etc/passwd")
@example("x" * 60_000)
@example('a"; name="other')
def test_the_name_of_an_uploaded_file_means_nothing(name: str) -> None:
    """Whatever it is, the file is kept under its job's id, or refused."""

    async def upload() -> tuple[int, FakeDesk]:
        desk = FakeDesk()
        raw = name.encode("utf-8", "surrogatepass").replace(b'"', b"%22").replace(b"\r", b"").replace(b"\n", b"")
        head = b'--b\r\nContent-Disposition: form-data; name="src_audio"; filename="' + raw + b'"\r\n\r\n'
        form = b'--b\r\nContent-Disposition: form-data; name="task_type"\r\n\r\ncover\r\n' + head + b"RIFF\r\n--b--\r\n"
        async with connected(desk) as client:
            headers = {"content-type": "multipart/form-data; boundary=b"}
            return (await client.post("/release_task", content=form, headers=headers)).status_code, desk

    status, desk = asyncio.run(upload())
    assert status in (200, 400)
    if status == 200:
        assert set(desk.audio) == {desk.jobs[0].request.src_audio}
        assert re.fullmatch(r"job-0\.source", str(desk.jobs[0].request.src_audio))
