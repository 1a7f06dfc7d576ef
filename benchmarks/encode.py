"""CPU seconds to encode a minute of audio, of each format, beside libsndfile's mp3 in the same run.

    python -m benchmarks.encode [--seconds N] [--rounds N]

The formats take turns, round after round, and the least of each counts: a busy machine makes all of them slower.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable

import numpy as np
import soundfile

from models.audio import KBIT_PER_S, MEDIA_TYPES, Pcm, encode
from models.music import SAMPLE_RATE, AudioFormat, Encoding

PEER = "libsndfile's mp3"


def music(seconds: float) -> Pcm:
    """Chords that change every half second and die away, drums of noise on every beat, in the two ears differently."""
    rng = np.random.default_rng(0)
    beat = SAMPLE_RATE // 2
    time_s = np.arange(beat) / SAMPLE_RATE
    beats = []
    for _ in range(round(2 * seconds)):
        notes = 110 * 2 ** (rng.integers(0, 36, size=(4, 1)) / 12)
        overtones = np.arange(1, 9)[:, None, None]
        chord = (np.sin(2 * np.pi * overtones * notes * time_s) / overtones).sum(axis=(0, 1)) * np.exp(-2 * time_s)
        drum = rng.standard_normal((beat, 2)) * np.exp(-20 * time_s)[:, None]
        beats.append(chord[:, None] * rng.uniform(0.6, 1.0, 2) + drum)
    samples = np.concatenate(beats)
    pcm: Pcm = (samples * (0.89 * 32767 / np.abs(samples).max())).astype(np.int16)
    return pcm


def by_libsndfile(pcm: Pcm) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, pcm, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III")
    return file.getvalue()


def encoders() -> dict[str, Callable[[Pcm], bytes]]:
    ours: dict[str, Callable[[Pcm], bytes]] = {
        _name(audio_format): lambda pcm, audio_format=audio_format: encode(pcm, Encoding(audio_format))  # type: ignore[misc]
        for audio_format in MEDIA_TYPES
    }
    return {PEER: by_libsndfile, **ours, "mp3 at 44.1 kHz": lambda pcm: encode(pcm, Encoding(AudioFormat.MP3, 44_100))}


def cpu_s_per_minute(seconds: float, rounds: int) -> dict[str, float]:
    pcm = music(seconds)
    least = dict.fromkeys(encoders(), float("inf"))
    for _ in range(rounds):
        for name, run in encoders().items():
            began = time.process_time()
            run(pcm)
            least[name] = min(least[name], time.process_time() - began)
    return {name: own * 60 / seconds for name, own in least.items()}


def _name(audio_format: AudioFormat) -> str:
    kbit_per_s = KBIT_PER_S.get(audio_format)
    return f"{audio_format} at {kbit_per_s} kbit/s" if kbit_per_s else audio_format.value


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument("--seconds", type=float, default=60.0, help="of audio")
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    found = cpu_s_per_minute(options.seconds, options.rounds)
    print(f"{'':20} CPU s a minute   of {PEER}")
    for name, own in found.items():
        print(f"{name:20} {own:14.3f} {own / found[PEER]:21.2f}")
    print(json.dumps({"cpu_s_per_minute": found, "peer": PEER}))


if __name__ == "__main__":
    main()
