"""Decoding in tiles: how many frames are decoded twice, how far tiles are from one piece, what memory a song takes.

    python -m benchmarks.vae

On tiny random weights with the real kernels, strides and receptive field; widths do not matter to any of the three.
Each memory figure is of a process of its own that makes an mp3 of a song: the most it ever held, less what it held
after loading, less the song's samples in fp32. (Their 16 bits come when the tiles' own memory is free again.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderOobleck
from torch import Tensor

from models.music import CHANNELS, FRAMES_PER_SECOND, LATENT_CHANNELS, SAMPLES_PER_FRAME, AudioFormat, Latents
from models.tiny import write_tiny
from models.vae.engine import VaeEngine
from models.vae.tiling import tiles
from models.weights import load_strictly, read_vae

LENGTHS_S = (10, 60, 120, 240, 600)
COMPARED_S = (10, 60, 120)  # one piece of more takes gigabytes, even of tiny weights
MEMORY_S = (60, 240, 600)


def redundancy(seconds: float) -> float:
    """Frames decoded over frames of the song."""
    frames = round(seconds * FRAMES_PER_SECOND)
    return sum(tile.last - tile.first for tile in tiles(frames)) / frames


def latents_of(seconds: float) -> Tensor:
    """(frame, channel)"""
    generator = torch.Generator().manual_seed(0)
    return torch.randn((round(seconds * FRAMES_PER_SECOND), LATENT_CHANNELS), generator=generator)


def engine_of(folder: Path) -> VaeEngine:
    return VaeEngine(folder, lambda extension, content: extension, torch.device("cpu"), encoders=1)


@torch.inference_mode()
def in_one_piece(folder: Path, latents: Tensor) -> Tensor:
    """(channel, sample) by diffusers' own class, weight norm not folded."""
    weights = read_vae(folder)
    vae = AutoencoderOobleck.from_config(weights.config)
    load_strictly(vae, {name: tensor.float() for name, tensor in weights.tensors.items()}, f"VAE {folder}")
    samples: Tensor = vae.eval().decode(latents.T[None]).sample[0]
    return samples


def furthest(folder: Path, seconds: float) -> float:
    """The largest difference of a sample, over the largest sample."""
    latents = latents_of(seconds)
    engine = engine_of(folder)
    whole = in_one_piece(folder, latents)
    difference = (engine.decode_samples(latents) - whole).abs().max() / whole.abs().max()
    engine.close()
    return float(difference)


def peak_bytes() -> int:
    """The most this process ever held; getrusage would count what its parent held, too."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def memory_bytes(folder: Path, seconds: float) -> int:
    """Of this process, which must have decoded nothing yet."""
    engine, latents = engine_of(folder), latents_of(seconds)
    before = peak_bytes()
    asyncio.run(engine.decode(Latents(latents.numpy()), AudioFormat.MP3))
    engine.close()
    return peak_bytes() - before - 4 * CHANNELS * SAMPLES_PER_FRAME * len(latents)


def memory_bytes_elsewhere(folder: Path, seconds: float) -> int:
    # every large buffer from the system and back to it at once: what malloc keeps for later differs from run to run
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-m", "benchmarks.vae", "--memory", str(seconds), "--checkpoint", str(folder)]
    return int(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument("--checkpoint", type=Path, help="a VAE's folder; tiny weights unless given")
    arguments.add_argument("--memory", type=float, help="prints what decoding so many seconds takes, and ends")
    options = arguments.parse_args()
    if options.memory is not None:
        print(memory_bytes(options.checkpoint, options.memory))
        return
    with tempfile.TemporaryDirectory() as root:
        folder = options.checkpoint
        if folder is None:
            write_tiny(Path(root) / "tiny")
            folder = Path(root) / "tiny" / "vae"
        repeated = {seconds: redundancy(seconds) for seconds in LENGTHS_S}
        differences = {seconds: furthest(folder, seconds) for seconds in COMPARED_S}
        memory = {seconds: memory_bytes_elsewhere(folder, seconds) for seconds in MEMORY_S}
    print("seconds   decoded/useful   tiled - whole   MB of an mp3 beside its samples")
    for seconds in LENGTHS_S:
        difference = f"{differences[seconds]:.1e}" if seconds in differences else ""
        megabytes = f"{memory[seconds] / 1e6:.0f}" if seconds in memory else ""
        print(f"{seconds:7} {repeated[seconds]:16.4f} {difference:>15} {megabytes:>33}")
    print(json.dumps({"decoded_over_useful": repeated, "largest_difference": differences, "memory_bytes": memory}))


if __name__ == "__main__":
    main()
