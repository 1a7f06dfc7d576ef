import pytest
import torch

from models.dit.transformer import Row, Transformer
from models.weights import read_dit
from tests.parity.golden import DIT, Case, names, read_case

FORWARDS = names("dit_")


@pytest.fixture(scope="module")
def transformers() -> dict[str, Transformer]:
    cpu = torch.device("cpu")
    return {
        kind: Transformer(read_dit(DIT / "checkpoint" / kind, torch.float32), cpu, torch.float32)
        for kind in ("turbo", "base")
    }


def row_of(case: Case) -> Row:
    inputs = case.inputs
    return Row(
        inputs["hidden_states"][0],
        float(inputs["timestep"][0]),
        inputs["context_latents"][0],
        inputs["encoder_hidden_states"][0],
    )


@pytest.mark.parametrize("name", FORWARDS)
@torch.inference_mode()
def test_one_row_is_the_references_forward(transformers: dict[str, Transformer], name: str) -> None:
    case = read_case(name)
    (velocity,) = transformers[case.checkpoint.name].velocities([row_of(case)])
    case.check("velocity", velocity[None])


@pytest.mark.parametrize("kind", ["turbo", "base"])
@torch.inference_mode()
def test_rows_of_all_lengths_in_one_forward_are_each_the_references(
    transformers: dict[str, Transformer], kind: str
) -> None:
    cases = [case for case in map(read_case, FORWARDS) if case.checkpoint.name == kind]
    assert len(cases) > 2
    velocities = transformers[kind].velocities([row_of(case) for case in cases])
    for case, velocity in zip(cases, velocities, strict=True):
        case.check("velocity", velocity[None])


@torch.inference_mode()
def test_one_null_token_stands_for_as_many_as_there_are_conditions(transformers: dict[str, Transformer]) -> None:
    case = read_case("dit_base_t0.800_T64_null")
    row = row_of(case)
    short = Row(row.x, row.t, row.context, row.condition[:1])
    (velocity,) = transformers["base"].velocities([short])
    case.check("velocity", velocity[None])


@torch.inference_mode()
def test_a_poisoned_row_does_not_reach_its_neighbour(transformers: dict[str, Transformer]) -> None:
    case = read_case(FORWARDS[-1])
    row = row_of(case)
    poisoned = Row(torch.full((33, 64), float("nan")), row.t, row.context[:33], row.condition)
    _, velocity = transformers[case.checkpoint.name].velocities([poisoned, row])
    case.check("velocity", velocity[None])
