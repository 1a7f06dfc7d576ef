"""The engine works in a process of its own: what becomes of it, and of us, when one of the two is killed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from models.errors import EngineDied
from models.lm.engine import LmEngine
from models.music import MusicRequest
from tests.vllm.conftest import OPTIONS

pytestmark = pytest.mark.vllm


@pytest.mark.asyncio
async def test_an_engine_process_that_dies_is_told_as_dead_and_to_every_song(checkpoint: Path) -> None:
    engine = LmEngine(checkpoint, OPTIONS)
    heard = asyncio.Event()
    request = MusicRequest(model="any", prompt="piano", audio_duration=300.0, thinking=True, seeds=(1, 2))
    work = asyncio.ensure_future(engine.plan(request, lambda done, planned: heard.set()))
    await heard.wait()
    (process,) = [child for child in psutil.Process().children() if "EngineCore" in " ".join(child.cmdline())]

    process.kill()

    with pytest.raises(EngineDied):
        await work
    with pytest.raises(EngineDied):
        await engine.check_health()
    engine.close()


OWNER = """
import asyncio, os, sys
from pathlib import Path
import psutil
from models.lm.engine import EngineOptions, LmEngine

async def main():
    options = EngineOptions(dtype="float32", enforce_eager=True, max_model_len=4096, max_num_seqs=4)
    engine = LmEngine(Path(sys.argv[1]), options)
    await engine.warm_up()
    print("engine", *[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_an_engine_process_dies_with_its_owner(checkpoint: Path, tmp_path: Path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    owner = subprocess.Popen(
        [sys.executable, str(script), str(checkpoint)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert owner.stdout is not None
    line = next(line for line in owner.stdout if line.startswith("engine "))
    processes = [psutil.Process(int(pid)) for pid in line.split()[1:]]
    assert any("EngineCore" in " ".join(process.cmdline()) for process in processes)

    owner.kill()

    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []
    owner.wait()
    owner.stdout.close()
