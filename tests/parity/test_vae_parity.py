from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from models.vae.engine import VaeEngine
from tests.parity.golden import DIT, Case, names, read_case

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def engine() -> Iterator[VaeEngine]:
    engine = VaeEngine(
        DIT / "checkpoint" / "vae", lambda _, content: str(len(content)), torch.device("cpu"), encoders=1
    )
    yield engine
    engine.close()


def check(case: Case, samples: Tensor) -> None:
    blocks = samples.reshape(2, -1, 1920)
    case.check("first", samples[:, :1920])
    case.check("last", samples[:, -1920:])
    case.check("strided", samples[:, :: case.parameters["stride"]])
    case.check("frame_rms", blocks.pow(2).mean(-1).sqrt())


@pytest.mark.parametrize("name", names("vae_decode_"))
def test_decoding_in_tiles_is_decoding_in_one_piece(engine: VaeEngine, name: str) -> None:
    case = read_case(name)
    check(case, engine.decode_samples(case.inputs["latents"][0].T))
