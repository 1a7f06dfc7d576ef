"""What an operator may set. Comes from `args:` of a Serve config file; a key that is not here is refused by name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from models.checkpoints import variant_named
from serve_app.keys import Keyring

PROJECT = Path(__file__).resolve().parent.parent


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LmSettings(Settings):
    """One 5 Hz LM, a deployment of its own. `kv_cache_gib` is memory for attention keys and values, beside the weights.

    A file `genres_vocab.txt` in the checkpoint's folder, one genre a line, lets the LM write genres.
    """

    model: str = "acestep-5Hz-lm-1.7B"
    backend: Literal["vllm", "torch"] = "vllm"
    songs: Annotated[int, Field(ge=1)] = 8  # decoded together; a guided song takes two of the engine's rows
    kv_cache_gib: Annotated[float, Field(gt=0)] = 8.0
    max_tokens: Annotated[int, Field(ge=4096)] = 8192  # prompt and answer of one song
    enforce_eager: bool = False

    @property
    def deployment(self) -> str:
        """Without dots: Ray would show what follows the last of them as the name."""
        name = f"lm-{self.model}".replace(".", "_")
        return name if self.backend == "vllm" else f"{name}-{self.backend_name}"

    @property
    def backend_name(self) -> str:
        """As the API calls it."""
        return "vllm" if self.backend == "vllm" else "pt"


class DitSettings(Settings):
    """One DiT variant. `tokens` bounds a batch: 12.5 tokens are a second of audio, a guided song counts twice."""

    model: str = "acestep-v15-turbo"
    songs: Annotated[int, Field(ge=1, le=8)] = 8
    tokens: Annotated[int, Field(ge=7500)] = 9_000
    packs_rows: bool | None = None  # all songs in one forward; unless said, on a GPU only
    compiles: bool | None = None  # the forward, while it warms up; unless said, on a GPU only

    @model_validator(mode="after")
    def _is_known(self) -> DitSettings:
        variant_named(self.model)
        return self

    @property
    def deployment(self) -> str:
        return f"dit-{self.model}"


class VaeSettings(Settings):
    """`tiles`: how many pieces of twenty seconds are decoded at once; unless said four on a GPU, one on a CPU."""

    tiles: Annotated[int, Field(ge=1)] | None = None
    encoders: Annotated[int, Field(ge=1)] = 2  # threads that turn samples into files


class QueueSettings(Settings):
    """`lease_s`: how long a job may go unheard of before another conductor takes it."""

    max_jobs: Annotated[int, Field(ge=1)] = 200
    max_jobs_per_key: Annotated[int, Field(ge=1)] | None = (
        None  # of max_jobs; all callers are one where there is no key
    )
    max_attempts: Annotated[int, Field(ge=1)] = 3
    lease_s: Annotated[float, Field(ge=3)] = 15.0


class ConductorSettings(Settings):
    jobs: Annotated[int, Field(ge=1)] = 16  # run side by side by one replica


class RetentionSettings(Settings):
    """How long what has ended is kept; null means for ever. Jobs go with their audio, the oldest first where all tracks
    together exceed `tracks_gib`. `uploads_h` is for what a caller uploaded and no job was made from since."""

    jobs_h: Annotated[float, Field(gt=0)] | None = 7 * 24.0
    tracks_gib: Annotated[float, Field(gt=0)] | None = None
    uploads_h: Annotated[float, Field(ge=1)] = 24.0


def _environment(name: str) -> Any:
    """What a variable holds; one that is empty is not set."""
    return os.environ.get(name, "").strip() or None


class ApiSettings(Settings):
    """`keys_from`: the environment variable with the API keys, separated by commas; unset or empty means no key."""

    keys_from: str = "ACESTEP_API_KEY"
    keys_file: Path | None = None  # keys with names, scopes and limits; read again when it changes
    allow_open: bool = False  # to listen beyond this machine without a key
    lm_timeout_s: Annotated[float, Field(gt=0)] = 60.0  # of what is asked of the LM without a job
    models_format: Literal["wrapped", "openrouter"] | None = None  # of /v1/models; unset: ACESTEP_MODELS_FORMAT
    audio_roots: tuple[Path, ...] = ()  # folders whose audio requests may name by its absolute path
    cors_origins: tuple[str, ...] = ()  # without a key and on loopback, pages of this machine as well
    max_body_mib: Annotated[int, Field(ge=1)] = 64  # read into memory
    max_bodies_mib: Annotated[int, Field(ge=1)] = 512  # of all requests at a time, in each replica of the ingress
    max_upload_mib: Annotated[int, Field(ge=1, le=256)] = 256  # with files, which go to disk as they come
    generation_timeout_s: Annotated[float, Field(gt=0)] = 600.0  # of those who wait in the request: chat, speech, v1
    v1_port: Annotated[int, Field(ge=1, le=65_535)] | None = Field(  # of the v1 API alone; unless said, none
        default_factory=lambda: _environment("ACESTEP_V1_PORT"), validate_default=True
    )
    v1_host: str = "127.0.0.1"  # where that port is listened at


class WebhookSettings(Settings):
    """Callers are told of their jobs' ends where the variable `secret_from` holds a secret to sign with: `whsec_` and
    base64 of 24 to 64 bytes. Several are separated by commas, and all of them sign."""

    secret_from: str = "ACESTEP_WEBHOOK_SECRET"
    http_hosts: tuple[str, ...] = ()  # may be called without TLS
    allow_private_networks: bool = False  # and this host


def _is_url(value: str) -> str:
    """The prefix may be left out."""
    if not re.fullmatch(r"(s3|gs|az)://[^/?#@\s]+(/[^?#\s]*)?", value):
        raise ValueError(
            f"{value!r} is no object store; write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
        )
    return value


def _listed(value: object) -> object:
    """One LM may stand without a list; nothing is no LM."""
    return [] if value is None else [value] if isinstance(value, dict) else value


class AppSettings(Settings):
    """Relative folders are taken from the project's root, whichever folder the server is started in."""

    checkpoints: Path = Path("checkpoints")
    tiny: bool = False  # write tiny random checkpoints into `checkpoints` first; for laptops and tests
    download: bool = False  # fetch absent checkpoints from their hub
    adapters: Path = Path("adapters")  # LoRAs that requests may name
    data: Path = Path("data")
    data_is_shared: bool = False  # `data` is on a disk that all hosts share
    disk_high_water: Annotated[float, Field(gt=0, le=1)] = 0.9  # share of the disk of `data` above which /readyz warns
    artifacts: Annotated[str, AfterValidator(_is_url)] | None = None  # an object store for all audio; unset: in `data`
    database_from: str = "ACESTEP_DATABASE_URL"  # the variable with PostgreSQL's URL; unset: SQLite in `data`, one host
    device: Literal["auto", "cpu", "cuda"] = "auto"
    lm: Annotated[tuple[LmSettings, ...], BeforeValidator(_listed)] = (LmSettings(),)  # default first; may be empty
    dit: Annotated[tuple[DitSettings, ...], Field(min_length=1)] = (DitSettings(),)
    vae: VaeSettings = VaeSettings()
    queue: QueueSettings = QueueSettings()
    conductor: ConductorSettings = ConductorSettings()
    retention: RetentionSettings = RetentionSettings()
    api: ApiSettings = Field(default_factory=ApiSettings)
    webhooks: WebhookSettings = WebhookSettings()

    @model_validator(mode="after")
    def _names_each_model_once(self) -> AppSettings:
        names = [dit.model for dit in self.dit]
        if len(set(names)) < len(names):
            raise ValueError(f"dit names a variant twice: {', '.join(names)}; one entry a variant")
        lms = [lm.deployment for lm in self.lm]
        if len(set(lms)) < len(lms):
            raise ValueError(f"lm names a model twice: {', '.join(lms)}; one entry for each model and backend")
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """Deployments that hold one."""
        return (*(lm.deployment for lm in self.lm), *(dit.deployment for dit in self.dit), "vae")

    @property
    def deployments(self) -> tuple[str, ...]:
        return ("ingress", "conductor", *self.models)

    def lm_for(self, model: str | None, backend: str | None) -> LmSettings | None:
        """The LM a request means: of the model it names, or else of any, the first on the backend it asks for, or else
        the first. `None` where there is none of that name."""
        lms = [lm for lm in self.lm if model in (None, lm.model)]
        return next((lm for lm in lms if lm.backend_name == backend), next(iter(lms), None))

    @property
    def checkpoints_folder(self) -> Path:
        return PROJECT / self.checkpoints

    @property
    def adapters_folder(self) -> Path:
        return PROJECT / self.adapters

    @property
    def data_folder(self) -> Path:
        return PROJECT / self.data

    @property
    def audio_roots(self) -> tuple[Path, ...]:
        return tuple(PROJECT / root for root in self.api.audio_roots)

    @property
    def database_url(self) -> str:
        return os.environ.get(self.database_from, "").strip() or f"sqlite:///{self.data_folder / 'jobs.db'}"


def read_api_keys(settings: ApiSettings) -> tuple[str, ...]:
    return tuple(key.strip() for key in os.environ.get(settings.keys_from, "").split(",") if key.strip())


def keyring_of(settings: ApiSettings) -> Keyring:
    """Raises BadKeys."""
    return Keyring(read_api_keys(settings), settings.keys_file and PROJECT / settings.keys_file)


def models_format_of(settings: ApiSettings) -> Literal["wrapped", "openrouter"]:
    """Raises ValidationError where the environment names another."""
    asked = os.environ.get("ACESTEP_MODELS_FORMAT", "").strip() or None
    return settings.models_format or ApiSettings.model_validate({"models_format": asked}).models_format or "wrapped"
