"""What a step of the DiT, a second of decoded audio and a song's words take on this machine; writes a cost file.

    python -m benchmarks.gpu [--device cpu --tiny] [--costs FILE]

Needs PyTorch and no checkpoint: weights are random, of the real sizes unless `--tiny`. Times are medians on the wall,
from an idle device to an idle device, as the step loop sees them. The floor of a step is its arithmetic at the rate of
a large matrix product in the same run, or once through the weights where that takes longer. `benchmarks.scheduling`
reads the cost file.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import AceStepTransformer1DModel, AutoencoderOobleck
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional
from transformers import Qwen3Config, Qwen3Model

from benchmarks.scheduling import Costs
from models import tiny
from models.dit.attention import Lengths, attention_for
from models.dit.encoders import build_condition_encoder
from models.dit.transformer import Row, Transformer
from models.music import FRAMES_PER_SECOND, LATENT_CHANNELS
from models.vae.engine import TILES_ON_A_GPU
from models.vae.oobleck import Oobleck
from models.vae.tiling import OVERLAP, WINDOW
from models.weights import DitConfig, DitWeights, VaeWeights, dit_config

COSTS = Path(__file__).parent / "costs"
WORDS = 512  # lyrics, timbre and caption of a song, in tokens
TEXT_WORDS = 128  # of them, those that the text encoder reads
SEED = 0


@dataclass(frozen=True, slots=True)
class Scale:
    """What is built, and how long the songs are."""

    name: str
    dit: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    steps: tuple[tuple[int, ...], ...]  # the rows of each step, in tokens; the smallest first
    mix: tuple[int, ...]  # rows of different length, for attention alone
    tiles: tuple[int, ...]  # decoded at once
    tile_frames: int
    square: int  # of the matrix product that the floor goes by


def _song(seconds: float) -> int:
    return math.ceil(seconds * FRAMES_PER_SECOND / 2)


REAL = Scale(
    name="2B",
    dit=tiny.VARIANTS["acestep-v15-turbo"]
    | {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "text_hidden_dim": 1024,
        "num_lyric_encoder_hidden_layers": 8,
        "num_timbre_encoder_hidden_layers": 4,
        "fsq_dim": 2048,
    },
    vae=tiny.VAE_CONFIG | {"channel_multiples": [1, 2, 4, 8, 16], "decoder_channels": 128},
    text={
        "vocab_size": 151_669,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    steps=(
        (_song(10),),
        (_song(60),),
        (_song(60),) * 4,
        (_song(240),),
        (_song(60),) * 8,
        (_song(240),) * 2,
        (_song(600),),
        (_song(240),) * 4,
    ),
    mix=(_song(30), _song(60), _song(120), _song(240)) * 2,
    tiles=(1, 2, 4, 8),
    tile_frames=WINDOW,
    square=8192,
)
TINY = Scale(
    name="tiny",
    dit=tiny.VARIANTS["acestep-v15-turbo"],
    vae=tiny.VAE_CONFIG,
    text={"vocab_size": 1000, **tiny.QWEN},
    steps=((25,), (40,), (40,) * 4, (160,), (160,) * 2),
    mix=(20, 40, 80),
    tiles=(1, 2),
    tile_frames=2 * OVERLAP + 10,
    square=256,
)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it runs, and how patient we are."""

    device: torch.device
    rounds: int

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine()

    def seconds(self, call: Callable[[], object]) -> float:
        """The median of as many calls as there are rounds, after two that do not count."""
        taken = []
        for number in range(self.rounds + 2):
            self._wait()
            began = time.perf_counter()
            call()
            self._wait()
            if number >= 2:
                taken.append(time.perf_counter() - began)
        return median(taken)

    def flop_per_s(self, square: int) -> float:
        one, other = (torch.randn(square, square, device=self.device, dtype=self.dtype) for _ in range(2))
        return 2 * square**3 / self.seconds(lambda: one @ other)

    def bytes_per_s(self, square: int) -> float:
        """Read; a copy reads and writes as much."""
        source = torch.zeros(8, square, square, device=self.device, dtype=self.dtype)
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.seconds(lambda: target.copy_(source))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def random_state(module: nn.Module, machine: Machine) -> dict[str, Tensor]:
    """For a module without memory of its own: small numbers, norms of one, no biases."""
    generator = torch.Generator(machine.device).manual_seed(SEED)

    def values(name: str, like: Tensor) -> Tensor:
        if like.ndim == 1:
            return torch.full(like.shape, float(not name.endswith("bias")), device=machine.device, dtype=machine.dtype)
        small = torch.empty(like.shape, device=machine.device).normal_(std=0.02, generator=generator)
        return small.to(machine.dtype)

    return {name: values(name, like) for name, like in module.state_dict().items()}


def weights_of(config: DitConfig, machine: Machine) -> DitWeights:
    """Of the transformer and the condition encoder; the audio tokenizer has no part in a step."""
    with torch.device("meta"):
        transformer = AceStepTransformer1DModel(**config.transformer)
        encoder = AceStepConditionEncoder(**config.condition_encoder)
        del encoder.silence_latent, encoder.null_condition_emb
    return DitWeights(
        config,
        random_state(transformer, machine),
        random_state(encoder, machine),
        audio_tokenizer={},
        audio_detokenizer={},
        null_condition=torch.zeros(1, 1, config.transformer["encoder_hidden_size"]),
        silence=torch.zeros(1, LATENT_CHANNELS),
    )


def step_flop(model: Any, rows: Sequence[int], words: int) -> float:
    """Of one forward, but for the keys and values of the words, which are the same at every step of a song."""
    tokens, flop = sum(rows), 0.0
    for kind, block in zip(model.layer_types, model.layers, strict=True):
        layers = (layer for name, layer in block.named_modules() if isinstance(layer, nn.Linear))
        kept = {block.cross_attn.to_k, block.cross_attn.to_v}
        flop += sum(2 * tokens * layer.in_features * layer.out_features for layer in layers if layer not in kept)
        window = model.config.sliding_window if kind == "sliding_attention" else None
        width = block.self_attn.heads * block.self_attn.head_dim
        flop += 4 * width * (sum(pairs(own, window) for own in rows) + tokens * words)
    return flop


def keys_and_values(model: Any, words: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What a cache of them would spare each step but a song's first."""
    layers = (block.cross_attn for block in model.layers)
    return [
        (layer.norm_k(layer.to_k(words).unflatten(-1, (-1, layer.head_dim))), layer.to_v(words)) for layer in layers
    ]


def pairs(tokens: int, window: int | None) -> int:
    """Of a query and a key that it sees."""
    reach = tokens - 1 if window is None else min(window, tokens - 1)
    return tokens * (2 * reach + 1) - reach * (reach + 1)


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of one step over rows of so many tokens; `words_s` of it for keys and values of the words, every time."""

    rows: tuple[int, ...]
    eager_s: float
    compiled_s: float | None
    floor_s: float
    words_s: float

    @property
    def tokens(self) -> int:
        return sum(self.rows)

    @property
    def own_s(self) -> float:
        """As the engine would run it."""
        return self.eager_s if self.compiled_s is None else self.compiled_s


@dataclass(frozen=True, slots=True)
class Compiled:
    """How long a warm-up takes, and the graphs made in it and after it."""

    warm_up_s: float
    graphs: int
    graphs_later: int


def rows_of(lengths: Sequence[int], width: int, machine: Machine) -> list[Row]:
    generator = torch.Generator(machine.device).manual_seed(SEED)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, device=machine.device, generator=generator)

    return [
        Row(
            noise(2 * tokens, LATENT_CHANNELS),
            0.5,
            noise(2 * tokens, 2 * LATENT_CHANNELS),
            noise(WORDS, width).to(machine.dtype),
        )
        for tokens in lengths
    ]


@torch.inference_mode()
def measure_steps(
    scale: Scale, weights: DitWeights, machine: Machine, compiles: bool
) -> tuple[list[Step], Compiled | None]:
    eager = Transformer(weights, machine.device, machine.dtype)
    compiled = Transformer(weights, machine.device, machine.dtype, is_compiled=True) if compiles else None
    before, began = _graphs(), time.perf_counter()
    if compiled is not None:
        compiled.warm_up(max(map(sum, scale.steps)) + 1)
    warm_up_s, graphs = time.perf_counter() - began, _graphs()
    flop_per_s, bytes_per_s = machine.flop_per_s(scale.square), machine.bytes_per_s(scale.square)
    weight_bytes = sum(tensor.nbytes for tensor in weights.transformer.values())
    model: Any = eager.model
    steps = []
    for lengths in scale.steps:
        rows = rows_of(lengths, weights.null_condition.shape[-1], machine)
        words = model.condition_embedder(torch.cat([row.condition for row in rows]))
        steps.append(
            Step(
                lengths,
                machine.seconds(partial(eager.velocities, rows)),
                None if compiled is None else machine.seconds(partial(compiled.velocities, rows)),
                max(step_flop(model, lengths, WORDS) / flop_per_s, weight_bytes / bytes_per_s),
                machine.seconds(partial(keys_and_values, model, words)),
            )
        )
    told = Compiled(warm_up_s, graphs - before, _graphs() - graphs) if compiles else None
    return steps, told


def _graphs() -> int:
    return counters["stats"]["unique_graphs"]


@torch.inference_mode()
def measure_attention(scale: Scale, machine: Machine) -> dict[str, dict[str, float]]:
    """Seconds of one layer's attention over songs of different length: ours packed, the peer padded and masked."""
    heads, kv_heads, width = (scale.dit[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    lengths = Lengths.of(scale.mix, machine.device)
    packed = [_heads(sum(scale.mix), count, width, machine) for count in (heads, kv_heads, kv_heads)]
    padded = [
        nn.utils.rnn.pad_sequence(list(torch.split(part, list(scale.mix))), batch_first=True)
        .repeat_interleave(heads // part.shape[1], dim=2)  # the kernels that take a mask know no groups
        .transpose(1, 2)
        .contiguous()
        for part in packed
    ]  # (row, head, token, width)
    attend = attention_for(machine.device)
    found = {}
    for name, window in (("full", None), ("window", scale.dit["sliding_window"])):
        mask = _mask(scale.mix, window, machine.device)

        def ours(window: int | None = window) -> Tensor:
            return attend(packed[0], packed[1], packed[2], (lengths, lengths), window)

        def masked(mask: Tensor = mask) -> Tensor:
            return functional.scaled_dot_product_attention(padded[0], padded[1], padded[2], attn_mask=mask)

        apart = max(
            float((theirs[:, :count].transpose(0, 1) - own).abs().max())
            for theirs, own, count in zip(masked(), torch.split(ours(), list(scale.mix)), scale.mix, strict=True)
        )
        found[name] = {"packed_s": machine.seconds(ours), "masked_s": machine.seconds(masked), "apart": apart}
    return found


def _heads(tokens: int, heads: int, width: int, machine: Machine) -> Tensor:
    return torch.randn(tokens, heads, width, device=machine.device, dtype=machine.dtype)


def _mask(lengths: Sequence[int], window: int | None, device: torch.device) -> Tensor:
    """(row, 1, query, key): True where a query sees a key; what lies beyond a row's end sees its first token."""
    position = torch.arange(max(lengths), device=device)
    mask = (position < torch.tensor(lengths, device=device)[:, None])[:, None, None, :]
    if window is not None:
        mask = mask & ((position[:, None] - position).abs() <= window)
    mask = mask.expand(-1, -1, len(position), -1).clone()
    mask[..., 0] |= ~mask.any(-1)
    return mask


@torch.inference_mode()
def measure_vae(scale: Scale, machine: Machine, compiles: bool) -> dict[str, dict[int, float]]:
    """Seconds for a second of sound, overlaps included, by how many tiles are decoded at once, where they fit."""
    oobleck = Oobleck(VaeWeights(scale.vae, AutoencoderOobleck(**scale.vae).state_dict()), machine.device)
    kept_s = (scale.tile_frames - 2 * OVERLAP) / FRAMES_PER_SECOND
    ways: dict[str, Callable[[Tensor], Any]] = {"eager": oobleck.model.decode}
    if compiles:
        ways["compiled"] = torch.compile(oobleck.model.decode, dynamic=False)
    found: dict[str, dict[int, float]] = {name: {} for name in ways}
    for name, decode in ways.items():
        for count in scale.tiles:
            latents = torch.randn(count, LATENT_CHANNELS, scale.tile_frames, device=machine.device, dtype=machine.dtype)
            try:
                found[name][count] = machine.seconds(partial(decode, latents)) / (count * kept_s)
            except torch.OutOfMemoryError:
                break
    return found


@torch.inference_mode()
def measure_words(scale: Scale, weights: DitWeights, machine: Machine) -> float:
    """Seconds for a song's words: text encoder over the caption, embedding of the lyrics, condition encoder."""
    encoder = build_condition_encoder(weights).to(machine.device, machine.dtype)
    model: Any = Qwen3Model(Qwen3Config(**scale.text)).to(machine.device, machine.dtype).eval()
    text, lyrics = (
        torch.zeros(1, count, dtype=torch.long, device=machine.device) for count in (TEXT_WORDS, WORDS - TEXT_WORDS - 1)
    )
    timbre = torch.zeros(1, weights.null_condition.shape[-1], device=machine.device, dtype=machine.dtype)

    def encode() -> Tensor:
        return encoder.pack(model(input_ids=text).last_hidden_state, model.get_input_embeddings()(lyrics), timbre)

    return machine.seconds(encode)


@dataclass(frozen=True, slots=True)
class Fit:
    """seconds = (token_s x tokens + token_pair_s x tokens of each song squared) x (1 + half_speed_tokens / tokens)"""

    token_s: float
    token_pair_s: float
    half_speed_tokens: float
    off: float  # of the step it tells worst, the share

    @classmethod
    def of(cls, steps: Mapping[tuple[int, ...], float]) -> Fit:
        """Least squares of the relative error, neither figure below zero; half_speed_tokens is tried."""
        return min((cls._with(half, steps) for half in _candidates()), key=lambda fit: fit.off)

    @classmethod
    def _with(cls, half: float, steps: Mapping[tuple[int, ...], float]) -> Fit:
        taken = np.array(list(steps.values()))
        terms = np.array([[sum(rows), sum(own**2 for own in rows)] for rows in steps], dtype=float)
        terms *= (1 + half / terms[:, :1]) / taken[:, None]
        both = np.linalg.lstsq(terms, np.ones(len(terms)), rcond=None)[0]
        if (both < 0).any():
            only = 0 if both[0] > 0 else 1
            both = np.zeros(2)
            both[only] = 1 / terms[:, only].mean()
        return cls(float(both[0]), float(both[1]), half, float(np.abs(terms @ both - 1).max()))


def _candidates() -> Iterator[float]:
    return (25.0 * number for number in range(201))


def costs_of(
    machine: Machine, scale: Scale, steps: Sequence[Step], decoded_second_s: float, song_s: float
) -> tuple[Costs, Fit]:
    floor, *fitted = steps
    fit = Fit.of({step.rows: step.own_s for step in fitted})
    costs = Costs(
        name=f"{machine.name}, {scale.name}, measured",
        is_measured=True,
        source=f"python -m benchmarks.gpu, PyTorch {torch.__version__}; no step is further than {fit.off:.0%} from it",
        token_s=fit.token_s,
        token_pair_s=fit.token_pair_s,
        half_speed_tokens=fit.half_speed_tokens,
        step_floor_s=floor.own_s,
        decoded_second_s=decoded_second_s,
        song_s=song_s,
    )
    return costs, fit


def show_steps(steps: Sequence[Step], told: Compiled | None) -> None:
    print("a step of the DiT, ms\n  tokens  songs    eager  compiled    floor  of its time  words anew")
    for step in steps:
        compiled = "" if step.compiled_s is None else f"{1e3 * step.compiled_s:.2f}"
        print(
            f"{step.tokens:8} {len(step.rows):6} {1e3 * step.eager_s:8.2f} {compiled:>9} "
            f"{1e3 * step.floor_s:8.2f} {step.floor_s / step.own_s:12.0%} {1e3 * step.words_s:11.2f}"
        )
    if told is not None:
        print(f"warm-up {told.warm_up_s:.1f} s, {told.graphs} graphs; made after it: {told.graphs_later}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="seconds on a CPU; the figures mean nothing")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="unless said, on a GPU only")
    parser.add_argument("--rounds", type=int, default=20, help="calls of which the median is taken")
    parser.add_argument("--costs", type=Path, help="the file to write; unless said, in benchmarks/costs")
    options = parser.parse_args(arguments)
    machine, scale = Machine(torch.device(options.device), options.rounds), TINY if options.tiny else REAL
    compiles = machine.device.type == "cuda" if options.compile is None else options.compile

    print(f"{machine.name}, {scale.name} at {machine.dtype}\n".replace("torch.", ""))
    weights = weights_of(dit_config(scale.dit), machine)
    steps, told = measure_steps(scale, weights, machine, compiles)
    show_steps(steps, told)
    attention = measure_attention(scale, machine)
    print(f"\nattention of one layer over songs of {', '.join(map(str, scale.mix))} tokens, ms\n{'':8} packed   masked")
    for name, own in attention.items():
        print(f"{name:8} {1e3 * own['packed_s']:6.3f} {1e3 * own['masked_s']:8.3f}")
    vae = measure_vae(scale, machine, compiles)
    print("\nVAE, ms for a second of sound\n   tiles  " + "".join(f"{name:>9}" for name in vae))
    for count in scale.tiles:
        print(f"{count:8}  " + "".join(f"{1e3 * own[count]:9.3f}" if count in own else "" for own in vae.values()))
    song_s = measure_words(scale, weights, machine)
    print(f"\nwords of a song: {1e3 * song_s:.2f} ms")

    at_once = TILES_ON_A_GPU if machine.device.type == "cuda" else 1
    costs, fit = costs_of(machine, scale, steps, vae["eager"][at_once], song_s)
    path = options.costs or COSTS / f"{'-'.join(machine.name.lower().split())}-{scale.name.lower()}.json"
    path.write_text(json.dumps(asdict(costs), indent=2) + "\n")
    print(f"\nfitted to within {fit.off:.0%}; costs written to {path}")
    document = {
        "device": machine.name,
        "torch": torch.__version__,
        "scale": scale.name,
        "steps": [asdict(step) | {"tokens": step.tokens} for step in steps],
        "compiled": None if told is None else asdict(told),
        "attention": attention,
        "vae": vae,
        "song_s": song_s,
        "costs": asdict(costs),
        "fit": asdict(fit),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
