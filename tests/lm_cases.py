"""The golden LM and its cases, for every backend that is held against them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from models.lm.backends.backend import Run
from models.lm.constraints import Rules
from models.lm.decoding import Decoding
from models.lm.sampling import Sampling
from models.music import MusicRequest

GOLDEN = Path(__file__).parent / "golden" / "lm"
GUIDED = json.loads((GOLDEN / "cfg" / "goldens.json").read_text(encoding="utf-8"))["cases"]
# e2e-1 counts codes to a length that its metadata is not told of; here a length given is given to both
WHOLE = [
    case
    for case in json.loads((GOLDEN / "cfg" / "end_to_end.json").read_text(encoding="utf-8"))["cases"]
    if case["id"] != "e2e-1"
]


def write_checkpoint(folder: Path) -> Path:
    shutil.copytree(GOLDEN / "cfg" / "model", folder)
    shutil.copytree(GOLDEN / "tokenizer", folder, dirs_exist_ok=True)
    return folder


def run_of(case: dict[str, Any], scale: float | None = None) -> Run:
    """A run of GUIDED, greedy; at another scale where one is given."""
    target = case["target_codes"]
    rules = Rules(begins_with_codes=True, fewest_codes=target or 0, most_codes=target)
    guided = case["scale"] if scale is None else scale
    decoding = Decoding(rules, Sampling(temperature=0.0), guided, 0)
    prompts = tuple(case["ids_cond"]), tuple(case["ids_uncond"]) if guided > 1 else None
    return Run(*prompts, decoding, case.get("max_new_tokens") or target + 1)


def request_of(case: dict[str, Any], **changed: Any) -> MusicRequest:
    """A request of WHOLE."""
    inputs = case["inputs"]
    given = inputs["user_metadata"]
    asked: dict[str, Any] = {
        "model": "any",
        "prompt": inputs["caption"],
        "lyrics": inputs["lyrics"],
        "audio_duration": inputs["target_duration"],
        "bpm": given.get("bpm"),
        "key_scale": given.get("keyscale"),
        "time_signature": given.get("timesignature"),
        "thinking": inputs["infer_type"] == "llm_dit",
        "lm_cfg_scale": inputs["cfg_scale"],
        "lm_negative_prompt": inputs["negative_prompt"],
        "lm_temperature": inputs["temperature"],
        "use_cot_caption": inputs["use_cot_caption"],
        "use_cot_language": inputs["use_cot_language"],
        "seeds": (7,),
    }
    return MusicRequest(**(asked | changed))
