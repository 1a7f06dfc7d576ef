import pytest
import torch

from models.dit.conditioning import AudioCodes, ConditionEncoder, build_audio_codes, build_condition_encoder
from models.weights import DitWeights, read_dit
from tests.parity.golden import DIT, names, read_case


@pytest.fixture(scope="module")
def weights() -> dict[str, DitWeights]:
    return {kind: read_dit(DIT / "checkpoint" / kind, torch.float32) for kind in ("turbo", "base")}


@pytest.fixture(scope="module")
def encoders(weights: dict[str, DitWeights]) -> dict[str, ConditionEncoder]:
    return {kind: build_condition_encoder(of_kind) for kind, of_kind in weights.items()}


@pytest.fixture(scope="module")
def codes(weights: dict[str, DitWeights]) -> dict[str, AudioCodes]:
    return {kind: build_audio_codes(of_kind) for kind, of_kind in weights.items()}


@pytest.mark.parametrize("name", names("cond_"))
@torch.inference_mode()
def test_lyrics_timbre_and_text_are_packed_as_by_the_reference(
    encoders: dict[str, ConditionEncoder], name: str
) -> None:
    case = read_case(name)
    encoder = encoders[case.checkpoint.name]
    timbre = encoder.timbre(case.inputs["refer_audio_latents"])
    case.check("timbre_embeddings", timbre[None])
    packed = encoder.pack(case.inputs["text_hidden_states"], case.inputs["lyric_hidden_states"], timbre)
    case.check("encoder_hidden_states", packed[None])


@pytest.mark.parametrize("name", names("tok_"))
@torch.inference_mode()
def test_latents_become_the_references_codes(
    codes: dict[str, AudioCodes], weights: dict[str, DitWeights], name: str
) -> None:
    case = read_case(name)
    kind = case.checkpoint.name
    latents = case.inputs["latents"][0]
    seen = codes[kind].codes(latents, weights[kind].silence)
    assert torch.equal(seen, case.expected["indices"][0, :, 0])
    case.check("detokenized", codes[kind].latents(seen)[None, : len(latents)])


@torch.inference_mode()
def test_codes_become_the_references_latents(codes: dict[str, AudioCodes]) -> None:
    case = read_case("codes_turbo_14")
    case.check("detokenized", codes["turbo"].latents(case.inputs["audio_codes"])[None])
