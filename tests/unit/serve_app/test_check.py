from pathlib import Path

import pytest

from serve_app.check import BadConfig, check_file
from serve_app.settings import PROJECT

FILES = [PROJECT / "serve_config.yaml", *sorted((PROJECT / "configs").glob("*.yaml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_scenario_builds(path: Path) -> None:
    check_file(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_first_line_of_a_scenario_says_when_to_use_it(path: Path) -> None:
    assert path.read_text().startswith("# ")


MISTAKES = [
    ("proxy_location:", "proxy_locations:", "proxy_locations"),
    ("port: 8001", "prot: 8001", "http_options.prot"),
    ("log_level: WARNING", "log_levels: WARNING", "logging_config.log_levels"),
    ("route_prefix: /", "route_prefixes: /", "applications[0].route_prefixes"),
    ("max_ongoing_requests: 200", "max_ongoing_request: 200", "applications[0].deployments[0].max_ongoing_request"),
    ("{num_cpus: 0.1}", "{num_cpu: 0.1}", "num_cpu"),
    ("- name: vae", "- name: vea", "'vea'"),
    ("tiny: true", "tinny: true", "tinny"),
    ("kv_cache_gib: 1", "kv_cache_gb: 1", "kv_cache_gb"),
    ("model: acestep-v15-base", "model: acestep-v15-bass", "acestep-v15-bass"),
    ("model: acestep-v15-base", "model: acestep-v15-turbo", "twice"),
    ("songs: 8", "songs: 0", "songs"),
    ("import_path: serve_app.app:build_app", "import_path: serve_app.ap:build_app", "serve_app.ap:build_app"),
    ("device: cpu", "device: gpu", "device"),
]


@pytest.mark.parametrize(("right", "wrong", "named"), MISTAKES, ids=[wrong for _, wrong, _ in MISTAKES])
def test_a_mistake_in_a_scenario_is_refused_by_name(tmp_path: Path, right: str, wrong: str, named: str) -> None:
    text = (PROJECT / "configs" / "cpu-tiny.yaml").read_text()
    assert right in text
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(text.replace(right, wrong))
    with pytest.raises(BadConfig) as caught:
        check_file(scenario)
    assert named in str(caught.value)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"absent\.yaml"):
        check_file(tmp_path / "absent.yaml")
