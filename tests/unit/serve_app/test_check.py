from pathlib import Path

import pytest

from serve_app.check import BadConfig, check_file
from serve_app.listening import is_loopback
from serve_app.settings import PROJECT

FILES = [PROJECT / "serve_config.yaml", *sorted((PROJECT / "configs").glob("*.yaml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_scenario_builds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACESTEP_API_KEY", "sesame")
    check_file(path)


@pytest.mark.parametrize(
    ("key", "allow_open", "is_good"), [("", "false", False), ("a", "false", True), ("", "true", True)]
)
@pytest.mark.parametrize("host", ["0.0.0.0", "'::'", "192.0.2.1", "''"])
def test_a_server_beyond_this_machine_needs_a_key_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, key: str, allow_open: str, is_good: bool
) -> None:
    monkeypatch.setenv("ACESTEP_API_KEY", key)
    text = (PROJECT / "configs" / "cpu-tiny.yaml").read_text()
    text = text.replace("host: 127.0.0.1", f"host: {host}")
    text = text.replace("      tiny: true\n", f"      tiny: true\n      api: {{allow_open: {allow_open}}}\n")
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(text)
    if is_good:
        check_file(scenario)
    else:
        with pytest.raises(BadConfig, match="no key is set"):
            check_file(scenario)


@pytest.mark.parametrize(
    ("host", "only_here"),
    [
        *[(host, True) for host in (None, "localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]")],
        *[(host, False) for host in ("", "0.0.0.0", "::", "server.example", "10.0.0.1")],
    ],
)
def test_what_listens_on_loopback_is_reached_from_here_only(host: str | None, only_here: bool) -> None:
    assert is_loopback(host) is only_here


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
