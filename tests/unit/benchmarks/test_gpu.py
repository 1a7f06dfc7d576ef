"""It runs wherever PyTorch does, its arithmetic is that of the model, and the simulation reads what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AceStepTransformer1DModel

from benchmarks import gpu
from benchmarks.gpu import REAL, TINY, Fit
from benchmarks.scheduling import COSTS, Costs
from models.weights import dit_config

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[3]
CHECKPOINT = 1_575_500_000  # parameters of the published transformer


@pytest.fixture(scope="module")
def model() -> Any:
    with torch.device("meta"):
        return AceStepTransformer1DModel(**dit_config(REAL.dit).transformer)


def test_what_is_measured_has_the_size_of_the_published_model(model: Any) -> None:
    assert sum(own.numel() for own in model.parameters()) == pytest.approx(CHECKPOINT, rel=1e-3)


@pytest.mark.parametrize(("seconds", "tera_flop"), [(60, 2.27), (180, 7.13), (240, 9.73), (600, 27.6)])
def test_the_floor_of_a_step_is_the_arithmetic_of_the_model(model: Any, seconds: float, tera_flop: float) -> None:
    assert gpu.step_flop(model, [int(12.5 * seconds)], words=512) == pytest.approx(1e12 * tera_flop, rel=0.01)


@pytest.mark.parametrize("tokens", [1, 5, 9, 40])
@pytest.mark.parametrize("window", [None, 0, 4, 100])
def test_pairs_are_counted_as_the_window_lets_them_be_seen(tokens: int, window: int | None) -> None:
    seen = [
        abs(query - key) <= (tokens if window is None else window) for query in range(tokens) for key in range(tokens)
    ]
    assert gpu.pairs(tokens, window) == sum(seen)


def test_figures_that_follow_a_cost_file_give_it_back() -> None:
    costs = Costs.read(COSTS)
    measured = {rows: costs.step_s(rows) for rows in REAL.steps[1:]}

    fit = Fit.of(measured)

    assert fit.half_speed_tokens == costs.half_speed_tokens
    assert fit.token_s == pytest.approx(costs.token_s, rel=1e-6)
    assert fit.token_pair_s == pytest.approx(costs.token_pair_s, rel=1e-6)
    assert fit.off < 1e-6


def test_a_step_that_no_such_law_can_tell_is_reported_as_far_off() -> None:
    assert Fit.of({(100,): 1.0, (100, 100): 1.0, (200,): 0.5, (400,): 3.0}).off > 0.3


def test_everything_is_measured_and_written_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    gpu.main(["--device", "cpu", "--tiny", "--compile", "--rounds", "1", "--costs", str(tmp_path / "costs.json")])

    torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    costs = Costs.read(tmp_path / "costs.json")
    assert costs.is_measured
    assert costs.step_s([40, 40]) >= costs.step_floor_s > 0
    assert [tuple(step["rows"]) for step in found["steps"]] == list(TINY.steps)
    assert all(step[own] > 0 for step in found["steps"] for own in ("eager_s", "compiled_s", "floor_s", "words_s"))
    assert found["compiled"]["graphs"] == 2
    assert found["compiled"]["graphs_later"] == 0
    assert all(own["apart"] < 1e-5 for own in found["attention"].values())
    assert set(found["vae"]) == {"eager", "compiled"}


def test_it_needs_neither_vllm_nor_ray() -> None:
    code = "import sys, benchmarks.gpu; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"vllm", "ray"} & set(run.stdout.split())
