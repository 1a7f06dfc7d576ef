"""Music without Ray, HTTP or a store: `make_music` and three engines, as the README says."""

from pathlib import Path

import numpy as np
import soundfile
import torch

from models.batching import BatchLimits
from models.checkpoints import VAE
from models.dit.engine import DitEngine
from models.lm.backends.backend import EngineOptions
from models.lm.engine import LmEngine
from models.music import MusicRequest, Progress, Stage
from models.pipeline import Stages, make_music
from models.tiny import LM
from models.vae.engine import VaeEngine

TURBO = "acestep-v15-turbo"


async def test_three_engines_make_a_song(tiny: Path, tmp_path: Path) -> None:
    def keep(extension: str, content: bytes) -> str:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.{extension}"
        path.write_bytes(content)
        return path.name

    lm = LmEngine(tiny / LM, EngineOptions(backend="torch", dtype="float32", max_model_len=2048))
    dit = DitEngine(tiny, TURBO, BatchLimits(), torch.device("cpu"))
    vae = VaeEngine(tiny / VAE, keep, torch.device("cpu"), encoders=1)
    known = {"bpm": 120, "key_scale": "C major", "time_signature": "4", "audio_duration": 10.0}
    request = MusicRequest.model_validate({"model": TURBO, "seeds": (1,), "prompt": "jazz", "thinking": True, **known})
    seen: list[Progress] = []
    made = await make_music(request, Stages(lm, dit, vae), seen.append)
    assert [len(plan.codes) for plan in made.plans] == [50]
    assert (made.dit_model, made.lm_model) == (TURBO, LM)
    assert {progress.stage for progress in seen} == set(Stage) - {Stage.ENCODE}
    for track in made.tracks:
        samples, rate = soundfile.read(tmp_path / track.ref)
        assert abs(len(samples) / rate - 10) < 0.1
    for engine in (lm, dit, vae):
        engine.close()


async def test_a_window_of_a_recording_is_made_anew(tiny: Path, tmp_path: Path) -> None:
    recording = np.random.default_rng(0).uniform(-0.5, 0.5, (36_000, 2)).astype(np.float32)

    def keep(extension: str, content: bytes) -> str:
        (tmp_path / f"song.{extension}").write_bytes(content)
        return f"song.{extension}"

    dit = DitEngine(tiny, TURBO, BatchLimits(), torch.device("cpu"))
    vae = VaeEngine(tiny / VAE, keep, torch.device("cpu"), encoders=1, read=lambda ref: {"recording": recording}[ref])
    request = MusicRequest.model_validate(
        {
            "model": TURBO,
            "seeds": (1,),
            "task_type": "repaint",
            "src_audio": "recording",
            "repainting_start": 0.5,
            "repainting_end": 1.0,
            "audio_format": "wav",
        }
    )
    seen: list[Progress] = []
    made = await make_music(request, Stages(None, dit, vae), seen.append)
    assert (made.tracks[0].seconds, made.remarks) == (1.0, ())
    assert {progress.stage for progress in seen} == {Stage.ENCODE, Stage.DENOISE, Stage.DECODE}
    samples, _ = soundfile.read(tmp_path / made.tracks[0].ref, dtype="float32")
    kept, was = samples[:20_000].ravel(), recording[:20_000].ravel()
    assert np.corrcoef(kept, was)[0, 1] > 0.9999
    assert abs(np.corrcoef(samples[26_000:36_000].ravel(), recording[26_000:36_000].ravel())[0, 1]) < 0.5
    dit.close()
    vae.close()


async def test_a_recording_is_heard_and_described(tiny: Path) -> None:
    recording = np.random.default_rng(0).uniform(-0.5, 0.5, (96_000, 2)).astype(np.float32)
    lm = LmEngine(tiny / LM, EngineOptions(backend="torch", dtype="float32", max_model_len=2048))
    dit = DitEngine(tiny, TURBO, BatchLimits(), torch.device("cpu"))
    vae = VaeEngine(tiny / VAE, lambda *_: "", torch.device("cpu"), encoders=1, read=lambda _: recording)
    request = {"model": TURBO, "seeds": (1,), "src_audio": "recording"}
    stages = Stages(lm, dit, vae)
    codes = await make_music(MusicRequest.model_validate(request | {"analysis": "codes"}), stages, lambda _: None)
    song = await make_music(MusicRequest.model_validate(request | {"analysis": "song"}), stages, lambda _: None)
    assert (codes.tracks, song.tracks) == ((), ())
    assert len(codes.plans[0].codes) == 10
    assert song.plans[0].codes == codes.plans[0].codes
    assert (song.lm_model, song.plans[0].metas.bpm is not None) == (LM, True)
    for engine in (lm, dit, vae):
        engine.close()
