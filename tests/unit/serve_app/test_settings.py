from pathlib import Path

import pytest
from pydantic import ValidationError

from models.errors import CheckpointError
from serve_app.prepare import named_by, prepare
from serve_app.settings import PROJECT, ApiSettings, AppSettings, models_format_of, read_api_keys


@pytest.mark.parametrize(
    ("written", "keys"), [("", ()), (" ", ()), ("a", ("a",)), ("a, b,,c ", ("a", "b", "c"))], ids=repr
)
def test_keys_are_separated_by_commas_and_none_means_no_key(
    monkeypatch: pytest.MonkeyPatch, written: str, keys: tuple[str, ...]
) -> None:
    monkeypatch.setenv("ACESTEP_API_KEY", written)
    assert read_api_keys(ApiSettings()) == keys


def test_the_v1_port_is_in_the_scenario_or_else_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACESTEP_V1_PORT", raising=False)
    assert AppSettings().api.v1_port is None
    monkeypatch.setenv("ACESTEP_V1_PORT", "8019")
    assert AppSettings().api.v1_port == 8019
    assert AppSettings.model_validate({"api": {"v1_port": 8020}}).api.v1_port == 8020
    monkeypatch.setenv("ACESTEP_V1_PORT", "eight")
    with pytest.raises(ValidationError, match="v1_port"):
        AppSettings()


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="kv_cache_gb"):
        AppSettings.model_validate({"lm": {"kv_cache_gb": 1}})


def test_relative_folders_are_the_projects_wherever_the_server_is_started() -> None:
    settings = AppSettings()
    assert settings.data_folder == PROJECT / "data"
    assert AppSettings(data=Path("/elsewhere")).data_folder == Path("/elsewhere")


def test_jobs_are_in_a_file_unless_the_environment_names_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = AppSettings(data=Path("/elsewhere"))
    assert settings.database_url == "sqlite:////elsewhere/jobs.db"
    monkeypatch.setenv("ACESTEP_DATABASE_URL", "postgresql://anna@host/jobs")
    assert settings.database_url == "postgresql://anna@host/jobs"


def test_what_is_not_on_disk_is_named_at_once(tmp_path: Path) -> None:
    settings = AppSettings(checkpoints=tmp_path / "none", data=tmp_path / "data")
    with pytest.raises(CheckpointError) as caught:
        prepare(settings)
    assert all(name in str(caught.value) for name in named_by(settings))
    assert "cpu-tiny" in str(caught.value)


def test_tiny_checkpoints_are_written_where_they_are_wanted_and_absent(tiny: Path, tmp_path: Path) -> None:
    settings = AppSettings.model_validate(
        {
            "tiny": True,
            "checkpoints": str(tiny),
            "data": str(tmp_path / "data"),
            "lm": {"model": "acestep-5Hz-lm-0.6B"},
            "dit": [{"model": "acestep-v15-xl-turbo"}],
        }
    )
    prepare(settings)
    assert (tmp_path / "data").is_dir()
    with pytest.raises(CheckpointError, match=r"no checkpoint acestep-v15-sft"):
        prepare(
            settings.model_copy(update={"dit": AppSettings.model_validate({"dit": [{"model": "acestep-v15-sft"}]}).dit})
        )


LMS = [
    {"model": "acestep-5Hz-lm-1.7B"},
    {"model": "acestep-5Hz-lm-0.6B"},
    {"model": "acestep-5Hz-lm-0.6B", "backend": "torch"},
]


@pytest.mark.parametrize(
    ("model", "backend", "deployment"),
    [
        (None, None, "lm-acestep-5Hz-lm-1_7B"),
        (None, "vllm", "lm-acestep-5Hz-lm-1_7B"),
        (None, "pt", "lm-acestep-5Hz-lm-0_6B-pt"),
        ("acestep-5Hz-lm-0.6B", None, "lm-acestep-5Hz-lm-0_6B"),
        ("acestep-5Hz-lm-0.6B", "pt", "lm-acestep-5Hz-lm-0_6B-pt"),
        ("acestep-5Hz-lm-1.7B", "pt", "lm-acestep-5Hz-lm-1_7B"),  # the engine remarks that it is not on pt
    ],
)
def test_a_request_goes_to_the_lm_it_means(model: str | None, backend: str | None, deployment: str) -> None:
    lm = AppSettings.model_validate({"lm": LMS}).lm_for(model, backend)
    assert lm is not None
    assert lm.deployment == deployment


def test_an_lm_that_is_not_configured_is_none() -> None:
    settings = AppSettings.model_validate({"lm": LMS})
    assert settings.lm_for("acestep-5Hz-lm-4B", None) is None
    assert AppSettings.model_validate({"lm": None}).lm_for(None, None) is None


def test_one_lm_needs_no_list() -> None:
    assert AppSettings.model_validate({"lm": LMS[1]}).lm == AppSettings.model_validate({"lm": [LMS[1]]}).lm


def test_a_model_on_the_same_backend_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="one entry for each model and backend"):
        AppSettings.model_validate({"lm": [LMS[0], LMS[0]]})


@pytest.mark.parametrize(
    ("said", "environment", "is_list"),
    [
        (None, None, False),
        (None, "", False),
        (None, "openrouter", True),
        ("wrapped", "openrouter", False),
        ("openrouter", None, True),
    ],
)
def test_the_list_of_models_has_the_shape_of_the_settings_or_else_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, said: str | None, environment: str | None, is_list: bool
) -> None:
    monkeypatch.delenv("ACESTEP_MODELS_FORMAT", raising=False)
    if environment is not None:
        monkeypatch.setenv("ACESTEP_MODELS_FORMAT", environment)
    assert (models_format_of(ApiSettings.model_validate({"models_format": said})) == "openrouter") is is_list


def test_a_shape_of_the_list_of_models_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACESTEP_MODELS_FORMAT", "csv")
    with pytest.raises(ValidationError, match="models_format"):
        models_format_of(ApiSettings())
