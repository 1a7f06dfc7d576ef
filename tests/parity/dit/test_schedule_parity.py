import json
from typing import Any

import pytest

from models.checkpoints import variant_named
from models.dit.sampling import resolve
from models.music import MusicRequest
from tests.parity.golden import CASES

NAMES = {"infer_steps": "inference_steps", "diffusion_guidance_scale": "guidance_scale"}
SCHEDULES: list[dict[str, Any]] = json.loads((CASES / "schedules.json").read_text())["schedules"]


@pytest.mark.parametrize("case", SCHEDULES, ids=lambda case: f"{case['checkpoint']} {case['arguments']}")
def test_the_dit_is_called_at_the_references_times(case: dict[str, Any]) -> None:
    asked = {NAMES.get(name, name): value for name, value in case["arguments"].items()}
    request = MusicRequest.model_validate({"model": f"acestep-v15-{case['checkpoint']}", "seeds": (0,), **asked})

    settings, _ = resolve(request, variant_named(request.model))

    assert settings.timesteps[:-1] == pytest.approx(case["model_call_timesteps"], abs=1e-7)
