"""Audio in an object store: S3 and what speaks its language, Google's or Azure's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from serve_app.artifacts.face import CHUNK, Kept, Kind, StorageFailed, StoredTrack, new_track, place_of

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

PART = 16 * 1024 * 1024  # bytes; a file of more goes up in parts, and is there when the last one is
LISTED_AT_ONCE = 1000
RETRIES: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}


def open_store(url: str, retries: RetryConfig = RETRIES) -> ObjectStore:
    """Of `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`. Credentials, region and
    endpoint are the environment's, by the names each provider gives them, or those of the machine's role."""
    # a slow listener may take long over a file, but a store that says nothing for so long is gone
    client: ClientConfig = {
        "connect_timeout": "5s",
        "read_timeout": "30s",
        "timeout": "1h",
        "allow_http": os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"),
    }
    return from_url(url, client_options=client, retry_config=retries)


@dataclass(frozen=True, slots=True)
class TrackObject(StoredTrack):
    store: ObjectStore
    key: str

    async def read(self, first: int, last: int) -> AsyncIterator[bytes]:
        with _refusals(f"could not read {self.ref}"):
            answer = await obstore.get_async(self.store, self.key, options={"range": (first, last + 1)})
            async for chunk in answer.stream(CHUNK):
                yield bytes(chunk)


class ObjectArtifacts:
    """An object is whole or not there by the store's own promise. Drafts are files of the host that writes them."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def save(self, extension: str, content: bytes) -> str:
        ref = new_track(extension)
        with _refusals(f"could not store {len(content)} bytes"):
            obstore.put(self._store, _key(ref), content, chunk_size=PART)
        return ref

    @contextmanager
    def draft(self) -> Iterator[Path]:
        with _refusals("could not begin a file"):
            number, name = tempfile.mkstemp(prefix="draft-")
            os.close(number)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def keep(self, draft: Path, ref: str) -> None:
        with _refusals(f"could not keep {ref}"):
            obstore.put(self._store, _key(ref), draft, chunk_size=PART)

    def copy(self, ref: str, new_ref: str) -> bool:
        with _refusals(f"could not keep {ref} as {new_ref}"):
            try:
                obstore.copy(self._store, _key(ref), _key(new_ref))
            except FileNotFoundError:
                return False
        return True

    @contextmanager
    def fetched(self, ref: str) -> Iterator[Path]:
        with self.draft() as path:
            with _refusals(f"could not fetch {ref}"), path.open("wb") as file:
                for chunk in obstore.get(self._store, _key(ref)).stream(CHUNK):
                    file.write(chunk)
            yield path

    def delete(self, refs: Iterable[str]) -> None:
        keys = [_key(ref) for ref in refs]
        with _refusals("could not delete an object"):
            try:
                obstore.delete(self._store, keys)
            except FileNotFoundError:  # which S3 does not mind, and which ends a bulk delete elsewhere
                for key in keys:
                    with suppress(FileNotFoundError):
                        obstore.delete(self._store, key)

    def pages(self) -> Iterator[list[Kept]]:
        with _refusals("could not list objects"):
            for folder in sorted({Kind.TRACK.folder, Kind.UPLOAD.folder}):
                for page in obstore.list(self._store, folder, chunk_size=LISTED_AT_ONCE):
                    kept = [Kept(told["path"].rpartition("/")[2], told["last_modified"].timestamp()) for told in page]
                    yield [each for each in kept if Kind.of(each.ref)]

    async def open(self, ref: str) -> StoredTrack | None:
        if Kind.of(ref) is not Kind.TRACK:
            return None
        with _refusals(f"could not look for {ref}"):
            try:
                told = await obstore.head_async(self._store, _key(ref))
            except FileNotFoundError:
                return None
        return TrackObject(ref, told["size"], told["last_modified"].timestamp(), self._store, _key(ref))


def _key(ref: str) -> str:
    return f"{place_of(ref)}/{ref}"


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        seen = str(error).partition("\n")[0]  # a debug print of the whole request follows
        raise StorageFailed(f"{what} in the object store: {seen}") from error
