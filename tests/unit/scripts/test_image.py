"""What can be known of the image where no engine for containers is."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]


def started(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`scripts/start.sh` in a folder that holds nothing else, with a `python` that says what it was asked."""
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "start.sh", folder / "scripts")
    python = folder / "python"
    python.write_text('#!/bin/sh\necho "$PWD $@"\n')
    python.chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin"}
    command = [str(folder / "scripts" / "start.sh"), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", check=False)


@pytest.mark.parametrize("words", [(), ("configs/cpu-tiny.yaml",)])
def test_the_image_serves_the_scenario_it_is_given(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert started(tmp_path, *words).stdout.split() == [str(tmp_path), "-m", "serve_app.serve", *words]


def test_other_words_are_run_as_they_are(tmp_path: Path) -> None:
    run = started(tmp_path, "/bin/sh", "-c", "echo ray start; exit 7")
    assert (run.stdout, run.returncode) == ("ray start\n", 7)


def test_the_dockerfile_has_no_fault_that_hadolint_knows() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    run = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.stdout, run.returncode) == ("", 0)


def test_everything_the_image_copies_is_let_into_its_context() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for path in " ".join(copied).split():
        assert (ROOT / path).exists()
        assert path.split("/")[0] in let_in


@pytest.mark.parametrize("accel", ["cpu", "gpu"])
def test_an_image_gets_the_versions_that_were_tested_and_no_tests(accel: str) -> None:
    whole, served = (
        set((ROOT / "requirements" / f"{name}.txt").read_text().split()) for name in (accel, f"{accel}-serve")
    )
    assert served < whole
    assert not [line for line in served if line.startswith(("pytest==", "moto==", "hypothesis=="))]


def test_compose_demands_its_secrets_and_keeps_what_must_last() -> None:
    text = (ROOT / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    assert all(f"{{{name}:?" in text for name in ("ACESTEP_API_KEY", "POSTGRES_PASSWORD"))
    assert services["server"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert "data:/app/data" in services["server"]["volumes"]
