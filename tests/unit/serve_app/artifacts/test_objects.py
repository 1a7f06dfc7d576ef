"""What is true of an object store only: it is behind a network."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from obstore.store import LocalStore

from serve_app.artifacts import objects
from serve_app.artifacts.face import StorageFailed
from serve_app.artifacts.objects import ObjectArtifacts, open_store
from tests.objects import BUCKET, Wire

SOURCE = "0f8fad5b-d9cb-469f-a165-70867728950e.source"


def at(endpoint: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> ObjectArtifacts:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    return ObjectArtifacts(open_store(f"s3://{BUCKET}/{prefix}", {"max_retries": 0}))


async def test_a_store_that_is_away_is_told_without_hanging(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = at(endpoint, "away", monkeypatch)
    track = await here.open(here.save("mp3", b"x"))
    assert track is not None
    with Wire.laid(endpoint, cut_after=0) as wire:
        gone = at(wire.endpoint, "away", monkeypatch)
    draft = tmp_path / "draft"
    draft.write_bytes(b"x")
    for act in (
        lambda: gone.save("mp3", b"x"),
        lambda: gone.keep(draft, SOURCE),
        lambda: gone.copy(track.ref, SOURCE),
        lambda: gone.delete([SOURCE]),
        lambda: list(gone.pages()),
        lambda: gone.fetched(track.ref).__enter__(),
    ):
        with pytest.raises(StorageFailed) as caught:
            act()
        assert "\n" not in str(caught.value)
        assert endpoint not in caught.value.public_message
    with pytest.raises(StorageFailed, match="could not look for"):
        await gone.open(track.ref)


async def test_a_store_that_goes_away_while_a_file_is_sent_has_no_half_of_it(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PART", 5 * 2**20)
    prefix = secrets.token_hex(4)
    with Wire.laid(endpoint, cut_after=12 * 2**20) as wire:
        sending = at(wire.endpoint, prefix, monkeypatch)
        whole = sending.save("mp3", bytes(6 * 2**20))
        with pytest.raises(StorageFailed, match="could not store 16777216 bytes"):
            sending.save("mp3", bytes(16 * 2**20))
        assert wire.bytes_left < 0
    here = at(endpoint, prefix, monkeypatch)
    assert [kept.ref for page in here.pages() for kept in page] == [whole]


async def test_a_store_that_goes_away_while_a_file_is_fetched_leaves_none_here(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    prefix = secrets.token_hex(4)
    ref = at(endpoint, prefix, monkeypatch).save("mp3", bytes(4 * 2**20))
    with Wire.laid(endpoint, cut_after=2**20) as wire:
        fetching = at(wire.endpoint, prefix, monkeypatch)
        with pytest.raises(StorageFailed, match="could not fetch"), fetching.fetched(ref):
            pass
    assert list(tmp_path.iterdir()) == []


async def test_a_store_that_goes_away_while_a_track_is_sent_on_ends_it_with_an_error(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = secrets.token_hex(4)
    ref = at(endpoint, prefix, monkeypatch).save("mp3", bytes(4 * 2**20))
    with Wire.laid(endpoint, cut_after=2**20) as wire:
        track = await at(wire.endpoint, prefix, monkeypatch).open(ref)
        assert track is not None
        with pytest.raises(StorageFailed, match="could not read"):
            async for _ in track.read(0, track.size - 1):
                pass


def test_a_store_that_minds_what_is_not_there_deletes_the_rest(tmp_path: Path) -> None:
    """As Google's and Azure's do."""
    artifacts = ObjectArtifacts(LocalStore(tmp_path))
    refs = [artifacts.save("mp3", b"x") for _ in range(3)]
    artifacts.delete([refs[0]])
    artifacts.delete([refs[1], refs[0], refs[2]])
    assert [kept for page in artifacts.pages() for kept in page] == []
