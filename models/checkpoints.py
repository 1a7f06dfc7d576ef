"""The checkpoints this project knows: what each can do, its defaults, where it is published. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from models.errors import CheckpointError, InvalidRequest, UnknownAdapter, UnknownModel
from models.music import HEARD, SOURCE_TASKS, Analysis, MusicRequest, Task

VAE = "vae"
TEXT_ENCODER = "Qwen3-Embedding-0.6B"
TINY_MARK = "tiny.json"  # lies beside the checkpoints that models.tiny wrote
TINY_VERSION = 2
BUNDLE = "ACE-Step/Ace-Step1.5"
ADAPTER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")

_SONG_TASKS = (Task.TEXT2MUSIC, Task.COVER, Task.REPAINT)
_STEM_TASKS = (Task.LEGO, Task.EXTRACT, Task.COMPLETE)
CODE_TASKS = (Task.TEXT2MUSIC, Task.COVER)  # that take audio codes
GUIDANCE_FIELDS = ("guidance_scale", "use_adg", "cfg_interval_start", "cfg_interval_end")  # not of turbo's


@dataclass(frozen=True, slots=True)
class Variant:
    """A DiT checkpoint by name. `repo` is its hub repository; in the bundle it is the folder of its name."""

    name: str
    repo: str
    is_turbo: bool = True
    tasks: tuple[Task, ...] = _SONG_TASKS
    default_steps: int = 8
    max_steps: int = 20
    default_shift: float = 3.0
    default_guidance: float = 1.0  # turbo has its guidance distilled into the weights


def _guided(name: str, tasks: tuple[Task, ...] = _SONG_TASKS) -> Variant:
    return Variant(name, f"ACE-Step/{name}", False, tasks, 50, 200, 1.0, 7.0)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("acestep-v15-turbo", BUNDLE),
        Variant("acestep-v15-turbo-shift1", "ACE-Step/acestep-v15-turbo-shift1", default_shift=1.0),
        Variant("acestep-v15-turbo-shift3", "ACE-Step/acestep-v15-turbo-shift3"),
        Variant("acestep-v15-turbo-continuous", "ACE-Step/acestep-v15-turbo-continuous"),
        _guided("acestep-v15-base", _SONG_TASKS + _STEM_TASKS),
        _guided("acestep-v15-sft"),
        Variant("acestep-v15-xl-turbo", "ACE-Step/acestep-v15-xl-turbo"),
        _guided("acestep-v15-xl-base", _SONG_TASKS + _STEM_TASKS),
        _guided("acestep-v15-xl-sft"),
    )
}

LMS = {
    "acestep-5Hz-lm-0.6B": "ACE-Step/acestep-5Hz-lm-0.6B",
    "acestep-5Hz-lm-1.7B": BUNDLE,
    "acestep-5Hz-lm-4B": "ACE-Step/acestep-5Hz-lm-4B",
}


def variant_named(name: str) -> Variant:
    try:
        return VARIANTS[name]
    except KeyError:
        raise UnknownModel(f"no DiT variant is called {name!r}; known are {', '.join(VARIANTS)}") from None


def check_request(request: MusicRequest, variant: Variant) -> None:
    """Raises InvalidRequest for what this variant cannot do, and for a task without what it works on."""
    if messages := [message for _, message in objections(request, variant)]:
        raise InvalidRequest("; ".join(messages))


def objections(request: MusicRequest, variant: Variant) -> Iterator[tuple[str, str]]:
    """Fields that this variant cannot do as they are, and why."""
    task = request.task_type
    if task not in variant.tasks:
        yield "task_type", f"task_type {task.value!r} is not one of {variant.name}'s: {', '.join(variant.tasks)}"
    if request.analysis is not None:
        yield from (("analysis", message) for message in _wrong_analysis(request.analysis, request))
    if request.audio_codes and task not in CODE_TASKS:
        yield "audio_codes", f"audio codes are for task_type {' or '.join(CODE_TASKS)}, not for {task.value!r}"
    if task in SOURCE_TASKS and request.src_audio is None and not request.audio_codes:
        yield "src_audio", f"task_type {task.value!r} works on source audio, and there is none"
    if request.inference_steps is not None and request.inference_steps > variant.max_steps:
        yield (
            "inference_steps",
            f"inference_steps {request.inference_steps}: {variant.name} takes 1 to {variant.max_steps}",
        )
    if request.timesteps is not None:
        yield from (("timesteps", message) for message in _wrong_timesteps(request.timesteps, variant))


def _wrong_analysis(analysis: Analysis, request: MusicRequest) -> Iterator[str]:
    if request.task_type is not Task.TEXT2MUSIC or request.songs > 1:
        yield (
            f"analysis {analysis.value!r} of {request.songs} songs with task_type {request.task_type.value!r}; "
            f"allowed: of one, with {Task.TEXT2MUSIC.value!r}"
        )
    has_codes = bool(request.audio_codes) and analysis is Analysis.SONG
    if analysis in HEARD and request.src_audio is None and not has_codes:
        yield f"analysis {analysis.value!r} is made of source audio, and there is none"


def _wrong_timesteps(timesteps: tuple[float, ...], variant: Variant) -> Iterator[str]:
    count = max((place + 1 for place, t in enumerate(timesteps) if t > 0), default=0)
    if not 1 <= count <= variant.max_steps:
        yield f"timesteps: {count} are above 0; {variant.name} takes 1 to {variant.max_steps}"
    if list(timesteps) != sorted(timesteps, reverse=True):
        yield f"timesteps: {list(timesteps)} rise somewhere; they run from noise, 1, down to music, 0"


def adapter_named(name: str, folder: Path | None) -> Path:
    """Its safetensors file. Raises UnknownAdapter."""
    path = find_adapter(name, folder) if folder else None
    if path is None:
        known = ", ".join(adapters_in(folder)) if folder else ""
        raise UnknownAdapter(f"no adapter is called {name!r}; known are {known or 'none'}")
    return path


def find_adapter(name: str, folder: Path) -> Path | None:
    """The safetensors file of an adapter: PEFT's or diffusers' in a folder of its name, or one that is named so."""
    places = (name, f"{name}/adapter") if (folder / name).is_dir() else ()
    files = [folder / place / file for place in places for file in ADAPTER_FILES] + [folder / f"{name}.safetensors"]
    return next((file for file in files if file.is_file()), None)


def adapters_in(folder: Path) -> tuple[str, ...]:
    """The names of all adapters there."""
    if not folder.is_dir():
        return ()
    names = {entry.name if entry.is_dir() else entry.name.removesuffix(".safetensors") for entry in folder.iterdir()}
    return tuple(sorted(name for name in names if find_adapter(name, folder)))


def locate(name: str, root: Path) -> Path:
    """The folder of a checkpoint. Raises CheckpointError when it is not there."""
    if not is_there(name, root):
        raise CheckpointError(f"no checkpoint {name} in {root}: neither config.json nor model_index.json is there")
    return root / name


def are_tiny(root: Path, version: int | None = TINY_VERSION) -> bool:
    """Whether `root` holds this version's tiny checkpoints; `None` is any version's."""
    mark = root / TINY_MARK
    return mark.is_file() and version in (None, json.loads(mark.read_text())["version"])


def is_there(name: str, root: Path) -> bool:
    """Whether a checkpoint lies below `root`, in ACE-Step's own or in diffusers' layout."""
    return any((root / name / config).is_file() for config in ("config.json", "model_index.json"))


def download(name: str, root: Path) -> None:
    """Fetches a checkpoint from its hub repository into `root`, with a progress bar. Raises CheckpointError offline."""
    repo = _repo_of(name)
    in_bundle = repo == BUNDLE
    try:
        snapshot_download(
            repo,
            local_dir=root if in_bundle else root / name,
            allow_patterns=[f"{name}/*"] if in_bundle else None,
            ignore_patterns=["*.py", "*.md"],
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(
            f"could not fetch {name} from {repo} into {root}: {error}; copy it there by hand"
        ) from error


def _repo_of(name: str) -> str:
    if name in VARIANTS:
        return VARIANTS[name].repo
    return LMS.get(name, BUNDLE)
