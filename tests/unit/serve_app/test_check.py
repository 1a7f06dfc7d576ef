from pathlib import Path

import pytest
import yaml
from ray.serve._private.build_app import build_app as walk_graph  # Serve's own, there is no public one

from serve_app.app import graph
from serve_app.check import BadConfig, check_file
from serve_app.settings import PROJECT, AppSettings

FILES = [PROJECT / "serve_config.yaml", *sorted((PROJECT / "configs").glob("*.yaml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_scenario_builds(path: Path) -> None:
    check_file(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_graph_of_a_scenario_has_the_deployments_its_settings_say(path: Path) -> None:
    args = yaml.safe_load(path.read_text())["applications"][0]["args"]
    settings = AppSettings.model_validate(args)
    bound = walk_graph(graph(settings), name="test").deployments
    assert sorted(one.name for one in bound) == sorted(settings.deployments)


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
    ("device: cpu", "device: cuda", "sees no GPU"),
    ("{num_cpus: 0.1}", "{num_cpus: 0.1, num_gpus: 1.5}", "num_gpus 1.5"),
    ("- name: vae", "- name: conductor", "conductor is there twice"),
    ("- name: vae\n", "- name: vae\n        autoscaling_config: {min_replica: 1}\n", "autoscaling_config.min_replica"),
    ("- name: vae\n", "- name: vae\n        autoscaling_config: {min_replicas: 3, max_replicas: 2}\n", "max_replicas"),
    (
        "- name: vae\n",
        "- name: vae\n        autoscaling_config: {look_back_period_s: 60, downscale_delay_s: 30}\n",
        "downscale_delay_s 30",
    ),
    (
        "- name: vae\n",
        "- name: vae\n        autoscaling_config: {target_ongoing_requests: 500}\n",
        "target_ongoing_requests 500 is never reached",
    ),
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
