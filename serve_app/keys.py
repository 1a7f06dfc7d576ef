"""API keys: who may ask for what. `python -m serve_app.keys new NAME` makes one, and prints it this once.

Only digests are kept. Keys from the environment may do everything; those of a file have names, scopes and limits, and
the file is read again when it changes, so that a key is added, rotated or withdrawn without a restart.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import logging
import os
import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from models.errors import AceError

log = logging.getLogger(__name__)

REFRESHED_EVERY_S = 2.0
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$"  # shorter than a digest, which owns the jobs of an environment's key
DIGEST = r"^[0-9a-f]{64}$"


class Scope(StrEnum):
    """What a key may do: have songs made and withdraw them, read, or run the server."""

    GENERATE = "generate"
    READ = "read"
    ADMIN = "admin"


class BadKeys(AceError):
    """A file of keys that cannot be used."""

    code = "bad_keys"
    is_public = True


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Key(BaseModel):
    """`sha256`: digests of the key in hex, several of them while it is rotated. Jobs belong to the key's name, or to
    `owner`: the digest of a key that moved here from the environment, or the name of one that this one follows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=NAME)]
    sha256: Annotated[
        tuple[Annotated[str, Field(pattern=DIGEST)], ...], BeforeValidator(_listed), Field(min_length=1, max_length=8)
    ]
    scopes: frozenset[Scope] = frozenset({Scope.GENERATE, Scope.READ})
    max_jobs: Annotated[int, Field(ge=1)] | None = None  # that wait at a time; unless given, the queue's own setting
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    owner: Annotated[str, Field(max_length=64)] | None = None

    @property
    def owner_name(self) -> str:
        return self.name if self.owner is None else self.owner


class KeyFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: Annotated[tuple[Key, ...], Field(min_length=1)]  # without one, the server would be open to all

    @model_validator(mode="after")
    def _has_each_once(self) -> KeyFile:
        for what, values in (
            ("name", [key.name for key in self.keys]),
            ("digest", [digest for key in self.keys for digest in key.sha256]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"two entries have the same {what}")
        return self


class Keyring:
    """A server without a single key is open: everybody is the same owner, `""`, and may do everything."""

    def __init__(self, always: Sequence[str] = (), file: Path | None = None) -> None:
        """`always`: keys that stay. Raises BadKeys."""
        self._always = tuple(_unlimited(key) for key in always)
        self._file = file
        self._version = None if file is None else _version(file)
        self._keys = (*(() if file is None else read_keys(file)), *self._always)

    @property
    def is_open(self) -> bool:
        return not self._keys

    def find(self, presented: bytes) -> Key | None:
        """The key that these bytes are, in a time that tells nothing of any."""
        digest = hashlib.sha256(presented).hexdigest()
        matches = [key for key in self._keys for known in key.sha256 if hmac.compare_digest(digest, known)]
        return matches[0] if matches else None

    def max_jobs_of(self, owner: str) -> int | None:
        """How many jobs of an owner may wait at a time, where its key says so."""
        return next((key.max_jobs for key in self._keys if key.owner_name == owner), None)

    def refresh(self) -> None:
        """Reads the file if it changed. A file that cannot be used changes nothing, and is told of once."""
        if self._file is None:
            return
        version = _version(self._file)
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = (*read_keys(self._file), *self._always)
        except BadKeys as error:
            log.error("the keys stay as they were: %s", error)
        else:
            log.info("%d keys were read", len(self._keys))

    async def keep_fresh(self, is_closing: asyncio.Event) -> None:
        while self._file is not None and not is_closing.is_set():
            await asyncio.to_thread(self.refresh)
            with suppress(TimeoutError):
                await asyncio.wait_for(is_closing.wait(), REFRESHED_EVERY_S)


def read_keys(file: Path) -> tuple[Key, ...]:
    """Of YAML or JSON, `keys:` and a list of entries. Raises BadKeys; never with what may be a key in its text."""
    try:
        return KeyFile.model_validate(yaml.safe_load(file.read_text())).keys
    except (OSError, UnicodeDecodeError) as error:
        raise BadKeys(f"{file} cannot be read: {type(error).__name__}") from None
    except yaml.YAMLError:
        raise BadKeys(f"{file} is neither YAML nor JSON") from None
    except ValidationError as error:
        faults = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        raise BadKeys(f"{file}: {'; '.join(faults)}") from None


def _version(file: Path) -> tuple[int, int, int] | None:
    """Another one when the file was written or another put in its place; `None` while it cannot be seen."""
    try:
        seen = os.stat(file)
    except OSError:
        return None
    return (seen.st_ino, seen.st_mtime_ns, seen.st_size)


def _unlimited(key: str) -> Key:
    digest = digest_of(key)
    return Key(name="environment", sha256=(digest,), scopes=frozenset(Scope), owner=digest)


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m serve_app.keys", description="Makes an API key.")
    new = parser.add_subparsers(required=True).add_parser(
        "new", help="prints a key, and its entry for the file of keys"
    )
    new.add_argument("name", help="who it is for")
    new.add_argument("--scopes", default="generate,read", help="of generate, read and admin, separated by commas")
    asked = parser.parse_args(arguments)
    key = f"ace-{secrets.token_urlsafe(32)}"
    try:
        made = Key.model_validate({"name": asked.name, "sha256": digest_of(key), "scopes": asked.scopes.split(",")})
    except ValidationError as error:
        sys.stderr.writelines(f"{fault['loc'][0]}: {fault['msg']}\n" for fault in error.errors())
        return 2
    entry = {"name": made.name, "sha256": made.sha256[0], "scopes": sorted(scope.value for scope in made.scopes)}
    sys.stdout.write(f"# the key, which is kept nowhere:\n# {key}\n# its entry under `keys:` in the file of keys:\n")
    sys.stdout.write(yaml.safe_dump([entry], sort_keys=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
