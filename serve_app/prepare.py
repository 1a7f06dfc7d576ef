"""What must be on disk before any replica starts."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from models import checkpoints
from models.errors import CheckpointError
from serve_app.settings import PROJECT, AppSettings


def prepare(settings: AppSettings) -> None:
    """Makes the data folder, writes tiny checkpoints or fetches absent ones if the settings say so.

    Raises CheckpointError that names every checkpoint still absent.
    """
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    root = settings.checkpoints_folder
    if settings.tiny:
        write_tiny(settings)
    absent = [name for name in named_by(settings) if not checkpoints.is_there(name, root)]
    if absent and settings.download:
        fetch(absent, root)
        absent = []
    if absent:
        raise CheckpointError(
            f"no checkpoint {', '.join(absent)} in {root}; put them there, set `download: true` in args to fetch them, "
            "or run configs/cpu-tiny.yaml, which writes tiny random ones"
        )


def fetch(names: Sequence[str], root: Path) -> None:
    """From their hub, those that are absent. Raises CheckpointError."""
    for name in names:
        if not checkpoints.is_there(name, root):
            checkpoints.download(name, root)


def named_by(settings: AppSettings) -> tuple[str, ...]:
    """Folders below `checkpoints` that these settings need."""
    models = [*(dit.model for dit in settings.dit), *(lm.model for lm in settings.lm)]
    return tuple(dict.fromkeys([*models, checkpoints.VAE, checkpoints.TEXT_ENCODER]))


def write_tiny(settings: AppSettings) -> None:
    """In a process of its own, since it needs torch, which takes its time to load."""
    if checkpoints.are_tiny(settings.checkpoints_folder):
        return
    command = [sys.executable, "-m", "models.tiny", str(settings.checkpoints_folder)]
    written = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if written.returncode:
        raise CheckpointError(
            f"could not write tiny checkpoints into {settings.checkpoints_folder}: {written.stderr[-2000:]}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serve_app.prepare", description="Fetches checkpoints.")
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="DiT variants and LMs; VAE and text encoder come too"
    )
    parser.add_argument("--checkpoints", type=Path, default=AppSettings().checkpoints_folder, help="into this folder")
    told = parser.parse_args(arguments)
    try:
        fetch([*told.models, checkpoints.VAE, checkpoints.TEXT_ENCODER], told.checkpoints)
    except CheckpointError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
