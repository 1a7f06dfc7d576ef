"""Keys from the environment and from a file that changes under a running server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.keys import BadKeys, Key, Keyring, Scope, digest_of, main, read_keys


def written(file: Path, *entries: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump({"keys": list(entries)}))
    return file


def entry(name: str, *keys: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "sha256": [digest_of(key) for key in keys], **more}


def owner(ring: Keyring, key: str) -> str | None:
    found = ring.find(key.encode())
    return None if found is None else found.owner_name


def test_without_a_key_the_server_is_open() -> None:
    assert Keyring().is_open
    assert not Keyring(["a"]).is_open


def test_a_key_of_the_environment_may_do_everything_and_owns_by_its_digest() -> None:
    found = Keyring(["a", "b"]).find(b"b")
    assert found is not None
    assert (found.scopes, found.owner_name) == (frozenset(Scope), hashlib.sha256(b"b").hexdigest())
    assert Keyring(["a", "b"]).find(b"c") is None


def test_a_key_of_a_file_has_a_name_and_what_its_entry_says(tmp_path: Path) -> None:
    file = written(
        tmp_path / "keys", entry("anna", "a", scopes=["read"], max_jobs=3, requests_per_minute=9), entry("bert", "b")
    )
    ring = Keyring(file=file)
    found = ring.find(b"a")
    assert found is not None
    assert (found.name, found.owner_name, found.requests_per_minute) == ("anna", "anna", 9)
    assert found.scopes == {Scope.READ}
    assert (ring.max_jobs_of("anna"), ring.max_jobs_of("bert"), ring.max_jobs_of("")) == (3, None, None)
    assert "sesame" not in repr(Keyring(["sesame"]).__dict__)


def test_a_file_may_be_json(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [entry("anna", "a")]}))
    assert [key.name for key in read_keys(file)] == ["anna"]


def test_jobs_stay_their_owners_while_a_key_is_rotated_and_after(tmp_path: Path) -> None:
    file = written(tmp_path / "keys", entry("anna", "old"))
    ring = Keyring(file=file)
    owners = [owner(ring, "old")]
    written(file, entry("anna", "old", "new"))
    ring.refresh()
    owners += [owner(ring, "old"), owner(ring, "new")]
    written(file, entry("anna", "newest"))
    ring.refresh()
    owners.append(owner(ring, "newest"))
    assert owners == ["anna"] * 4
    assert ring.find(b"old") is None


def test_jobs_of_a_key_that_moves_from_the_environment_to_a_file_stay_its_own(tmp_path: Path) -> None:
    before = owner(Keyring(["a"]), "a")
    ring = Keyring(["a"], written(tmp_path / "keys", entry("anna", "a", owner=digest_of("a"), scopes=["read"])))
    found = ring.find(b"a")
    assert found is not None
    assert (found.name, found.owner_name) == ("anna", before)


@pytest.mark.parametrize(
    "broken",
    [
        "keys: [",
        "keys: []",
        "[]",
        "",
        "keys: [{name: anna}]",
        "keys: [{name: anna, sha256: sesame}]",
        f"keys: [{{name: anna, sha256: {'0' * 64}, scope: [read]}}]",
        f"keys: [{{name: anna, sha256: {'0' * 64}, scopes: [everything]}}]",
        f"keys: [{{name: {'a' * 41}, sha256: {'0' * 64}}}]",
        f"keys: [{{name: anna, sha256: {'0' * 64}}}, {{name: anna, sha256: {'1' * 64}}}]",
        f"keys: [{{name: anna, sha256: {'0' * 64}}}, {{name: bert, sha256: {'0' * 64}}}]",
        None,
    ],
)
def test_a_broken_file_is_refused_at_the_start_and_changes_nothing_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    file = written(tmp_path / "keys", entry("anna", "a"))
    ring = Keyring(file=file)
    if broken is None:
        file.unlink()
    else:
        file.write_text(broken)
    with pytest.raises(BadKeys):
        Keyring(file=file)
    with caplog.at_level(logging.ERROR):
        ring.refresh()
        ring.refresh()
    assert owner(ring, "a") == "anna"
    assert len(caplog.records) == 1
    assert "sesame" not in caplog.text  # whoever writes the key itself into the file has made one mistake already

    written(file, entry("bert", "b"))
    ring.refresh()
    assert (owner(ring, "a"), owner(ring, "b")) == (None, "bert")


async def test_a_changed_file_is_noticed_by_a_running_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.keys.REFRESHED_EVERY_S", 0.01)
    file = written(tmp_path / "keys", entry("anna", "a"))
    ring = Keyring(file=file)
    is_closing = asyncio.Event()
    refreshing = asyncio.create_task(ring.keep_fresh(is_closing))
    written(file, entry("anna", "a"), entry("bert", "b"))
    while ring.find(b"b") is None:
        await asyncio.sleep(0.01)
    is_closing.set()
    await refreshing


def test_a_new_key_is_printed_once_with_an_entry_that_knows_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["new", "anna", "--scopes", "read,admin"]) == 0
    printed = capsys.readouterr().out
    key = next(line for line in printed.splitlines() if line.startswith("# ace-")).removeprefix("# ")
    file = tmp_path / "keys"
    file.write_text("keys:\n" + printed)
    found = Keyring(file=file).find(key.encode())
    assert found == Key(name="anna", sha256=(digest_of(key),), scopes=frozenset({Scope.READ, Scope.ADMIN}))
    assert printed.count(key) == 1


@pytest.mark.parametrize("arguments", [["new", "an na"], ["new", "anna", "--scopes", "everything"]])
def test_a_key_that_could_not_be_read_back_is_not_made(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().out == ""
