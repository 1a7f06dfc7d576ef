"""scripts/setup.sh, with a Python that installs nothing and writes down what it was asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# stands in for python3.11, for the .venv's own python and for uv; a call that names $REFUSED fails
STAND_IN = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>calls
[ -z "$REFUSED" ] || [[ "$*" != *$REFUSED* ]] || exit 1
if [[ "$*" == "-m venv"* ]]; then
  [[ "$*" != *--clear* ]] || rm -rf .venv
  mkdir -p .venv/bin
  cp "$0" .venv/bin/python
  cp "$0" .venv/bin/uv
fi
"""


@dataclass(frozen=True, slots=True)
class Clone:
    root: Path

    def run(self, refused: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """One run; its calls replace those of the run before."""
        (self.root / "calls").write_text("")
        inherited = {name: value for name, value in os.environ.items() if name not in ("ACCEL", "PYTHON")}
        tools = f"{self.root / 'tools'}:{inherited['PATH']}"
        return subprocess.run(
            [self.root / "scripts" / "setup.sh"],
            env={**inherited, "PATH": tools, "REFUSED": refused, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def calls(self) -> str:
        return (self.root / "calls").read_text()

    def put(self, tool: str, script: str) -> None:
        path = self.root / "tools" / tool
        path.write_text(script)
        path.chmod(0o755)


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A checkout on a machine without a GPU."""
    for folder in ("scripts", "requirements", "tools"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "scripts" / "setup.sh", tmp_path / "scripts")
    (tmp_path / "requirements" / "cpu.txt").write_text("numpy==1\ntorch==2+cpu\n")
    (tmp_path / "requirements" / "gpu.txt").write_text("numpy==1\ntorch==2\n")
    clone = Clone(tmp_path)
    clone.put("python3.11", STAND_IN)
    clone.put("nvidia-smi", "#!/bin/sh\nexit 9\n")
    return clone


def test_a_second_run_does_nothing(clone: Clone) -> None:
    assert clone.run().returncode == 0
    assert "install" in clone.calls
    assert clone.run().returncode == 0
    assert clone.calls == ""


def test_a_run_that_failed_half_way_is_not_taken_for_done(clone: Clone) -> None:
    assert clone.run(refused="-r requirements/cpu.txt").returncode != 0
    assert clone.run().returncode == 0
    assert "-r requirements/cpu.txt" in clone.calls


def test_a_list_that_came_back_after_another_failed_is_installed_again(clone: Clone) -> None:
    clone.run()
    cpu = clone.root / "requirements" / "cpu.txt"
    first = cpu.read_text()
    cpu.write_text("numpy==2\ntorch==2+cpu\n")
    assert clone.run(refused="--editable").returncode != 0
    cpu.write_text(first)
    assert clone.run().returncode == 0
    assert "-r requirements/cpu.txt" in clone.calls


def test_a_changed_list_is_installed_over_the_old_one(clone: Clone) -> None:
    clone.run()
    (clone.root / "requirements" / "cpu.txt").write_text("numpy==2\ntorch==2+cpu\n")
    assert clone.run().returncode == 0
    assert "-r requirements/cpu.txt" in clone.calls
    assert "--clear" not in clone.calls


def test_a_gpu_that_answers_chooses_the_gpu_list(clone: Clone) -> None:
    clone.put("nvidia-smi", "#!/bin/sh\necho 'GPU 0: A Card'\n")
    assert clone.run().returncode == 0
    assert "-r requirements/gpu.txt" in clone.calls


def test_accel_overrules_the_gpu_that_answers(clone: Clone) -> None:
    clone.put("nvidia-smi", "#!/bin/sh\necho 'GPU 0: A Card'\n")
    assert clone.run(ACCEL="cpu").returncode == 0
    assert "-r requirements/cpu.txt" in clone.calls


def test_the_other_kind_of_machine_gets_a_new_environment(clone: Clone) -> None:
    clone.run(ACCEL="cpu")
    assert clone.run(ACCEL="gpu").returncode == 0
    assert "--clear" in clone.calls


def test_an_unknown_accel_is_refused_with_what_is_allowed(clone: Clone) -> None:
    run = clone.run(ACCEL="tpu")
    assert run.returncode != 0
    assert "ACCEL is 'tpu'; allowed: cpu, gpu" in run.stderr


def test_a_cpu_torch_that_pip_does_not_find_is_fetched_by_uv(clone: Clone) -> None:
    assert clone.run(refused="-m pip install --quiet --disable-pip-version-check --no-deps torch").returncode == 0
    assert "--torch-backend=cpu torch==2+cpu" in clone.calls


def test_a_cpu_torch_that_nobody_finds_is_an_error_that_says_what_to_do(clone: Clone) -> None:
    run = clone.run(refused="torch==")
    assert run.returncode != 0
    assert "PIP_FIND_LINKS=/that/folder make setup" in run.stderr


def test_plain_torch_is_never_asked_for_on_a_cpu_machine(clone: Clone) -> None:
    clone.run(refused="torch==")
    asked = [call for call in clone.calls.splitlines() if "torch==" in call]
    assert len(asked) == 2
    assert all(" torch==2+cpu" in call for call in asked)


def test_a_machine_without_python_3_11_is_told_how_to_get_it(clone: Clone) -> None:
    run = clone.run(PYTHON="python-that-is-not-there")
    assert run.returncode != 0
    assert "python3.11-venv" in run.stderr
