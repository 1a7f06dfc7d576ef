from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.dit.context import Canvas, canvas_of, canvas_of_codes, chunk_mask, context_of
from models.dit.encoders import AudioCodes, ConditionEncoder, build_audio_codes, build_condition_encoder
from models.music import Task
from models.weights import DitWeights, read_dit
from tests.parity.golden import DIT, Case, names, read_case


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


PREPARED = names("turbo_", "base_", "cover_", "repaint_", "lego_")


@pytest.mark.parametrize("name", PREPARED)
@torch.inference_mode()
def test_words_and_timbre_of_a_song_are_the_references(encoders: dict[str, ConditionEncoder], name: str) -> None:
    case = read_case(name)
    encoder, inputs = encoders[case.checkpoint.name], case.inputs
    timbre = encoder.timbre(inputs["refer_audio_latents"])
    for text, wanted in (
        ("text_hidden_states", "encoder_hidden_states"),
        ("non_cover_text_hidden_states", "encoder_hidden_states_non_cover"),
    ):
        if text in inputs:
            packed = encoder.pack(inputs[text], inputs["lyric_hidden_states"], timbre)
            check_module(case, packed, inputs[wanted][0])


@pytest.mark.parametrize("name", PREPARED)
@torch.inference_mode()
def test_what_a_song_is_painted_on_is_the_references(
    codes: dict[str, AudioCodes], weights: dict[str, DitWeights], name: str
) -> None:
    case = read_case(name)
    kind, inputs, frames = case.checkpoint.name, case.inputs, case.parameters["T"]
    silence = weights[kind].silence[:frames]
    window = tuple(case.parameters.get("window_frames", (0, frames)))
    task = case.name.partition("_")[0]
    if "audio_codes" in inputs:
        canvas = canvas_of_codes(codes[kind].latents(inputs["audio_codes"]), silence)
    elif task in list(Task):
        source = inputs.get("clean_src_latents", inputs["src_latents"])[0]
        canvas = canvas_of(Task(task), source, window, silence, codes[kind])
    else:
        canvas = Canvas(silence)
    mask = chunk_mask(frames, window, "explicit")

    check_module(case, context_of(canvas.source, mask), inputs["context_latents"][0])
    if "context_latents_non_cover" in inputs:
        check_module(case, context_of(silence, mask), inputs["context_latents_non_cover"][0])
    if canvas.kept is not None and "clean_src_latents" in inputs:
        assert (canvas.kept.first, canvas.kept.last) == window
        assert torch.equal(canvas.kept.latents, inputs["clean_src_latents"][0])


def check_module(case: Case, seen: Tensor, wanted: Tensor) -> None:
    """At the limits of one module call, which are tighter than those of a trajectory."""
    limits = {"relative_l2": 1e-5, "max_abs": 1e-4}
    replace(case, expected={"seen": wanted}, tolerance=limits).check("seen", seen)
