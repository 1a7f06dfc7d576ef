"""Every documented parameter, under every name, in JSON and in a form, lands where it belongs or is refused by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from models.music import Lora
from serve_app.dialects.parameters import BY_NAME, NOT_APPLIED, PARAMETERS, Parameter

if TYPE_CHECKING:
    from models.music import MusicRequest
    from tests.contract.conftest import FakeDesk

WARM = (Lora(name="warm", scale=0.5), Lora(name="lo-fi"))

# documented parameter: value sent, MusicRequest field, value there
LANDS: dict[str, tuple[Any, str, Any]] = {
    "prompt": ("jazz", "prompt", "jazz"),
    "lyrics": ("la la", "lyrics", "la la"),
    "thinking": (True, "thinking", True),
    "sample_mode": (True, "sample_query", ""),
    "sample_query": ("a sad song", "sample_query", "a sad song"),
    "use_format": (True, "use_format", True),
    "model": ("acestep-v15-base", "model", "acestep-v15-base"),
    "bpm": (120, "bpm", 120),
    "key_scale": ("Am", "key_scale", "A minor"),
    "time_signature": ("6/8", "time_signature", "6"),
    "audio_duration": (42.5, "audio_duration", 42.5),
    "vocal_language": ("ja", "vocal_language", "ja"),
    "audio_format": ("flac", "audio_format", "flac"),
    "audio_bitrate": ("320k", "audio_bitrate", 320),
    "audio_sample_rate": (44_100, "audio_sample_rate", 44_100),
    "audio_code_string": ("<|audio_code_5|><|audio_code_63999|>", "audio_codes", ((5, 63_999), (5, 63_999))),
    "inference_steps": (12, "inference_steps", 12),
    "guidance_scale": (4.5, "guidance_scale", 4.5),
    "shift": (2.0, "shift", 2.0),
    "infer_method": ("sde", "infer_method", "sde"),
    "timesteps": ("0.9, 0.5,0", "timesteps", (0.9, 0.5, 0.0)),
    "use_adg": (True, "use_adg", True),
    "cfg_interval_start": (0.2, "cfg_interval_start", 0.2),
    "cfg_interval_end": (0.8, "cfg_interval_end", 0.8),
    "lm_model_path": ("acestep-5Hz-lm-0.6B", "lm_model", "acestep-5Hz-lm-0.6B"),
    "lm_backend": ("pt", "lm_backend", "pt"),
    "lm_temperature": (0.5, "lm_temperature", 0.5),
    "lm_cfg_scale": (3.0, "lm_cfg_scale", 3.0),
    "lm_repetition_penalty": (1.1, "lm_repetition_penalty", 1.1),
    "lm_top_k": (40, "lm_top_k", 40),
    "lm_top_p": (0.8, "lm_top_p", 0.8),
    "lm_negative_prompt": ("noise", "lm_negative_prompt", "noise"),
    "use_cot_caption": (False, "use_cot_caption", False),
    "use_cot_language": (False, "use_cot_language", False),
    "constrained_decoding": (False, "constrained_decoding", False),
    "constrained_decoding_debug": (True, "constrained_decoding_debug", True),
    "allow_lm_batch": (False, "allow_lm_batch", False),
    "task_type": ("text2music", "task_type", "text2music"),
    "instruction": ("Make it loud:", "instruction", "Make it loud:"),
    "sampler_mode": ("heun", "infer_method", "heun"),
    "track_name": ("drums", "track_name", "drums"),
    "track_classes": (["drums", "bass"], "track_classes", ("drums", "bass")),
    "repainting_start": (-2.5, "repainting_start", -2.5),
    "repainting_end": (7.5, "repainting_end", 7.5),
    "repaint_mode": ("aggressive", "repaint_mode", "aggressive"),
    "repaint_strength": (0.25, "repaint_strength", 0.25),
    "chunk_mask_mode": ("auto", "chunk_mask_mode", "auto"),
    "audio_cover_strength": (0.5, "audio_cover_strength", 0.5),
    "cover_noise_strength": (0.3, "cover_noise_strength", 0.3),
    "loras": ([{"name": "warm", "scale": 0.5}, {"name": "lo-fi"}], "loras", WARM),
    "velocity_norm_threshold": (2.0, "velocity_norm_threshold", 2.0),
    "velocity_ema_factor": (0.2, "velocity_ema_factor", 0.2),
    "dcw_enabled": (True, "dcw_enabled", True),
    "dcw_scaler": (0.1, "dcw_scaler", 0.1),
    "dcw_high_scaler": (0.2, "dcw_high_scaler", 0.2),
    "retake_variance": (0.4, "retake_variance", 0.4),
}
TESTED_ELSEWHERE = {"use_random_seed", "seed", "batch_size", "reference_audio_path", "src_audio_path"}
TESTED_ELSEWHERE |= {
    "analysis_only",
    "full_analysis_only",
    "extract_codes_only",
    "priority",
    "retake_seed",
    "dcw_mode",
    "dcw_wavelet",
}
NAMED = [
    (name, LANDS[parameter.name]) for parameter in PARAMETERS if parameter.name in LANDS for name in parameter.names
]


async def asked(client: httpx.AsyncClient, desk: FakeDesk, body: dict[str, Any], **how: Any) -> MusicRequest:
    reply = await client.post("/release_task", **(how or {"json": body}))
    assert reply.status_code == 200, reply.text
    return desk.jobs[-1].request


def test_every_documented_parameter_is_tested() -> None:
    assert {parameter.name for parameter in PARAMETERS} == LANDS.keys() | TESTED_ELSEWHERE


@pytest.mark.parametrize(("name", "row"), NAMED, ids=[name for name, _ in NAMED])
async def test_it_lands_from_json(
    client: httpx.AsyncClient, desk: FakeDesk, name: str, row: tuple[Any, str, Any]
) -> None:
    sent, field, value = row
    assert getattr(await asked(client, desk, {name: sent}), field) == value


@pytest.mark.parametrize(("name", "row"), NAMED, ids=[name for name, _ in NAMED])
async def test_it_lands_from_a_form(
    client: httpx.AsyncClient, desk: FakeDesk, name: str, row: tuple[Any, str, Any]
) -> None:
    sent, field, value = row
    written = {name: sent if isinstance(sent, str) else json.dumps(sent)}
    assert getattr(await asked(client, desk, {}, data=written), field) == value
    multipart = {name: (None, written[name])}
    assert getattr(await asked(client, desk, {}, files=multipart), field) == value


@pytest.mark.parametrize("name", LANDS)
async def test_it_lands_from_wherever_it_is_nested(client: httpx.AsyncClient, desk: FakeDesk, name: str) -> None:
    sent, field, value = LANDS[name]
    for place in ("param_obj", "metas"):
        assert getattr(await asked(client, desk, {place: {name: sent}}), field) == value
        assert getattr(await asked(client, desk, {}, data={place: json.dumps({name: sent})}), field) == value


@pytest.mark.parametrize("place", ["param_obj", "metas", "meta", "metadata", "user_metadata", "userMetadata"])
@pytest.mark.parametrize("is_text", [False, True])
async def test_everything_may_be_nested(client: httpx.AsyncClient, desk: FakeDesk, place: str, is_text: bool) -> None:
    inner: Any = {"bpm": 99, "keyscale": "C major", "duration": 33, "language": "fr", "thinking": True}
    request = await asked(client, desk, {place: json.dumps(inner) if is_text else inner})
    assert (request.bpm, request.key_scale, request.audio_duration) == (99, "C major", 33)
    assert (request.vocal_language, request.thinking) == ("fr", True)


async def test_the_top_wins_over_what_is_nested_and_null_is_not_given(
    client: httpx.AsyncClient, desk: FakeDesk
) -> None:
    request = await asked(client, desk, {"bpm": 60, "param_obj": {"bpm": 70, "duration": 20}, "metas": {"bpm": 80}})
    assert (request.bpm, request.audio_duration) == (60, 20)
    request = await asked(client, desk, {"bpm": None, "param_obj": {"bpm": 70}, "metas": {"bpm": 80}})
    assert request.bpm == 70


# what is sent, what the refusal names, what it says is allowed
REFUSED: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"audio_duration": 9.9}, "audio_duration", "10"),
    ({"audio_duration": 601}, "audio_duration", "600"),
    ({"bpm": 29}, "bpm", "30"),
    ({"bpm": 301}, "bpm", "300"),
    ({"bpm": "fast"}, "bpm", "30 to 300"),
    ({"bpm": 120.5}, "bpm", "whole number"),
    ({"batch_size": 9}, "batch_size", "1 to 8"),
    ({"batch_size": -1}, "batch_size", "1 to 8"),
    ({"inference_steps": 21}, "inference_steps", "1 to 20"),
    ({"inference_steps": 0}, "inference_steps", "1"),
    ({"inference_steps": 201, "model": "acestep-v15-base"}, "inference_steps", "200"),
    ({"shift": 5.1}, "shift", "1 to 5"),
    ({"shift": "NaN"}, "shift", "finite"),
    ({"guidance_scale": float("1e9")}, "guidance_scale", "30"),
    ({"cfg_interval_start": 1.5}, "cfg_interval_start", "0 to 1"),
    ({"cfg_interval_start": 0.9, "cfg_interval_end": 0.1}, "cfg_interval_start", "cfg_interval_end"),
    ({"infer_method": "rk4"}, "infer_method", "ode"),
    ({"audio_format": "ogg"}, "audio_format", "mp3"),
    ({"audio_bitrate": "loud"}, "audio_bitrate", "192k"),
    ({"key_scale": "H dur"}, "key_scale", "C# minor"),
    ({"time_signature": "7"}, "time_signature", "2, 3, 4 or 6"),
    ({"vocal_language": "xx"}, "vocal_language", "zh"),
    ({"timesteps": "1,zero"}, "timesteps", "commas"),
    ({"timesteps": "2,1"}, "timesteps", "1 to 0"),
    ({"seed": "abc", "use_random_seed": False}, "seed", "number"),
    ({"seed": 2**40, "use_random_seed": False}, "seed", "4294967295"),
    ({"audio_code_string": "la la"}, "audio_code_string", "<|audio_code_123|>"),
    ({"audio_code_string": "<|audio_code_64000|>"}, "audio_code_string", "63999"),
    ({"audio_code_string": ["<|audio_code_1|>"] * 3, "batch_size": 2}, "audio_code_string", "2 songs"),
    ({"lm_backend": "mlx"}, "lm_backend", "vllm"),
    ({"lm_temperature": -1}, "lm_temperature", "0"),
    ({"task_type": "cover"}, "task_type", "source audio"),
    ({"task_type": "cover-nofsq"}, "task_type", "'cover'"),
    ({"task_type": "extract"}, "task_type", "text2music, cover, repaint"),
    ({"sampler_mode": "heun", "infer_method": "sde"}, "sampler_mode", "ode"),
    ({"sampler_mode": "dpm"}, "sampler_mode", "euler and heun"),
    ({"audio_cover_strength": 1.1}, "audio_cover_strength", "0 to 1"),
    ({"cover_noise_strength": -0.1}, "cover_noise_strength", "0 to 1"),
    ({"repainting_start": 5, "repainting_end": 5}, "repainting_end", "after repainting_start"),
    ({"repainting_end": "late"}, "repainting_end", "its end"),
    ({"repaint_mode": "careful"}, "repaint_mode", "balanced"),
    ({"repaint_strength": 2}, "repaint_strength", "0 is conservative"),
    ({"chunk_mask_mode": "never"}, "chunk_mask_mode", "explicit, auto"),
    ({"track_name": "x" * 65}, "track_name", "64"),
    ({"track_classes": ["x"] * 17}, "track_classes", "16"),
    ({"track_classes": {"drums": 1}}, "track_classes", "list of words"),
    ({"track_classes": "[drums"}, "track_classes", "JSON"),
    ({"loras": [{"name": "../etc/passwd"}]}, "loras", "A-Za-z0-9"),
    ({"loras": [{"name": "warm", "scale": 3}]}, "loras", "-2 to 2"),
    ({"loras": ["a", "b", "c", "d", "e"]}, "loras", "4 items"),
    ({"loras": "warm,warm"}, "loras", "twice"),
    ({"loras": 5}, "loras", "list of adapters"),
    ({"loras": "[" * 50_000}, "loras", "JSON"),
    ({"velocity_norm_threshold": -1}, "velocity_norm_threshold", "0 is off"),
    ({"velocity_ema_factor": 1}, "velocity_ema_factor", "below 1"),
    ({"dcw_enabled": True, "dcw_mode": "low"}, "dcw_mode", "'double' with 'haar'"),
    ({"dcw_enabled": True, "dcw_wavelet": "db4"}, "dcw_wavelet", "'double' with 'haar'"),
    ({"dcw_scaler": 1.5}, "dcw_scaler", "0 to 1"),
    ({"retake_variance": 1.5, "retake_seed": 1}, "retake_variance", "0 to 1"),
    ({"retake_variance": 0.5, "retake_seed": "one"}, "retake_seed", "number"),
    ({"retake_variance": 0.5, "retake_seed": 2**40}, "retake_seed", "4294967295"),
    ({"task_type": "dance"}, "task_type", "text2music"),
    ({"model": "acestep-v16"}, "acestep-v16", "acestep-v15-turbo"),
    ({"prompt": "x" * 5000}, "prompt", "2048"),
    ({"guidance_scale": 30.5}, "guidance_scale", "30"),
    ({"cfg_interval_end": -0.5}, "cfg_interval_end", "0 to 1"),
    ({"lm_cfg_scale": 31}, "lm_cfg_scale", "30"),
    ({"lm_repetition_penalty": 0}, "lm_repetition_penalty", "1 is off"),
    ({"lm_top_k": 1.5}, "lm_top_k", "whole number"),
    ({"lm_top_k": 2_000_000}, "lm_top_k", "1000000"),
    ({"lm_top_p": 0}, "lm_top_p", "1 or more is off"),
    ({"lm_negative_prompt": "x" * 5000}, "lm_negative_prompt", "2048"),
    ({"lm_model_path": "acestep-5Hz-lm-9B"}, "acestep-5Hz-lm-9B", "acestep-5Hz-lm-0.6B"),
    ({"lyrics": "x" * 9000}, "lyrics", "8192"),
    ({"sample_query": "x" * 2049}, "sample_query", "2048"),
    ({"instruction": "x" * 1025}, "instruction", "1024"),
    ({"audio_sample_rate": "fast"}, "audio_sample_rate", "48000 or 44100"),
    ({"dcw_high_scaler": -1}, "dcw_high_scaler", "0 to 1"),
    ({"repainting_start": "early"}, "repainting_start", "Seconds of the source"),
    ({"priority": "now"}, "priority", "high, normal, low"),
)
NEVER_WRONG = {
    *("thinking", "sample_mode", "use_format", "use_random_seed", "use_adg", "dcw_enabled", "allow_lm_batch"),
    *("analysis_only", "full_analysis_only", "extract_codes_only"),
    *("use_cot_caption", "use_cot_language", "constrained_decoding", "constrained_decoding_debug"),
}
REFUSED_ELSEWHERE = {"src_audio_path", "reference_audio_path"}


def test_every_parameter_that_can_be_wrong_is_tested_with_what_is() -> None:
    sent = {name for body, _, _ in REFUSED for name in body}
    assert BY_NAME.keys() == sent | NEVER_WRONG | REFUSED_ELSEWHERE


@pytest.mark.parametrize(("body", "named", "allowed"), REFUSED, ids=lambda value: str(value)[:60])
async def test_what_is_out_of_range_is_refused_by_name_with_what_is_allowed(
    client: httpx.AsyncClient, desk: FakeDesk, body: dict[str, Any], named: str, allowed: str
) -> None:
    reply = await client.post("/release_task", json=body)
    assert reply.status_code == 400
    assert named in reply.json()["detail"]
    assert allowed in reply.json()["detail"]
    assert reply.json()["error"] == reply.json()["detail"]
    assert desk.jobs == []


async def test_what_is_left_open_is_left_to_the_model(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    request = await asked(client, desk, {"audio_duration": -1, "bpm": 0, "key_scale": "", "time_signature": ""})
    assert (request.audio_duration, request.bpm, request.key_scale, request.time_signature) == (None,) * 4
    assert (request.inference_steps, request.guidance_scale, request.shift, request.vocal_language) == (None,) * 4
    assert (request.model, request.songs, request.audio_format) == ("acestep-v15-turbo", 2, "mp3")


async def test_whole_numbers_may_be_written_with_a_point(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    request = await asked(client, desk, {"bpm": 120.0, "batch_size": "4.0"})
    assert (request.bpm, request.songs) == (120, 4)


@pytest.mark.parametrize(
    ("body", "first_seeds", "songs"),
    [
        ({"seed": 5, "use_random_seed": False, "batch_size": 1}, [5], 1),
        ({"seed": 5, "use_random_seed": False, "batch_size": 3}, [5], 3),
        ({"seed": "12,34", "use_random_seed": "false"}, [12, 34], 2),
        ({"seed": "12, 34, 56", "use_random_seed": False, "batch_size": 2}, [12, 34], 2),
        ({"seed": -1, "use_random_seed": False}, [], 2),
        ({"seed": 0, "use_random_seed": False, "batch_size": 1}, [0], 1),
    ],
    ids=str,
)
async def test_seeds_are_used_as_given_and_drawn_where_not(
    client: httpx.AsyncClient, desk: FakeDesk, body: dict[str, Any], first_seeds: list[int], songs: int
) -> None:
    request = await asked(client, desk, body)
    assert list(request.seeds[: len(first_seeds)]) == first_seeds
    assert len(set(request.seeds)) == songs


async def test_random_seeds_differ_and_a_seed_that_is_not_used_is_reported(client: httpx.AsyncClient) -> None:
    reply = await client.post("/release_task", json={"seed": 5})
    assert reply.json()["data"]["warnings"] == ["seed: not used, use_random_seed is true"]


async def test_top_p_of_one_and_more_is_off(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    assert (await asked(client, desk, {"lm_top_p": 1.5})).lm_top_p == 1.0


async def test_one_list_of_codes_a_song(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    request = await asked(client, desk, {"audio_code_string": ["<|audio_code_1|>", "<|audio_code_2|>"]})
    assert request.audio_codes == ((1,), (2,))


async def test_the_word_for_a_file_format_does_not_switch_formatting_on(
    client: httpx.AsyncClient, desk: FakeDesk
) -> None:
    assert not (await asked(client, desk, {"format": "mp3"})).use_format


async def test_what_is_not_known_is_reported_not_swallowed(client: httpx.AsyncClient) -> None:
    reply = await client.post("/release_task", json={"prompt": "x", "spice": 1, "param_obj": {"use_cot_metas": 1}})
    warnings = reply.json()["data"]["warnings"]
    assert warnings == ["spice: not known here, not used", "use_cot_metas: not known here, not used"]


# documented parameter: the value that changes nothing, another one, and what is none
NOT_APPLIED_VALUES: dict[str, tuple[Any, Any, Any]] = {
    "use_tiled_decode": (True, False, None),
    "is_format_caption": (False, True, None),
    "global_caption": ("", "a song", None),
    "repaint_latent_crossfade_frames": (10, 25, "wide"),
    "repaint_wav_crossfade_sec": (0.0, 0.5, "wide"),
    "latent_shift": (0, 0.1, "NaN"),
    "latent_rescale": (1, 1.1, "NaN"),
    "eta": (None, 0.5, "much"),
    "momentum": (None, -0.75, "much"),
    "guidance_variant": ("apg_classic", "adg", None),
    "guidance_params": ({}, {"norm": 2}, None),
}


def test_every_parameter_that_is_not_applied_is_tested() -> None:
    assert {parameter.name for parameter in NOT_APPLIED} == NOT_APPLIED_VALUES.keys()


@pytest.mark.parametrize("parameter", NOT_APPLIED, ids=lambda parameter: parameter.name)
async def test_what_is_documented_and_not_applied_says_why_where_it_would_matter(
    client: httpx.AsyncClient, parameter: Parameter
) -> None:
    neutral, other, wrong = NOT_APPLIED_VALUES[parameter.name]
    for name in parameter.names:
        for body in ({name: other}, {"param_obj": {name: other}}, {"metas": json.dumps({name: other})}):
            reply = (await client.post("/release_task", json=body)).json()
            assert reply["data"]["warnings"] == [f"{parameter.name}: not applied, {parameter.note}"]
        assert "warnings" not in (await client.post("/release_task", json={name: neutral})).json()["data"]
        if wrong is not None:
            refused = await client.post("/release_task", data={name: wrong})
            assert (refused.status_code, refused.json()["detail"].split()[0]) == (400, name)


@pytest.mark.parametrize("written", [192, "192", "192k", "192K", 192_000])
async def test_a_bit_rate_may_be_written_in_every_way(client: httpx.AsyncClient, desk: FakeDesk, written: Any) -> None:
    assert (await asked(client, desk, {"mp3_bitrate": written})).audio_bitrate == 192


@pytest.mark.parametrize("audio_format", ["wav", "flac"])
async def test_a_bit_rate_that_a_format_has_not_is_reported(
    client: httpx.AsyncClient, desk: FakeDesk, audio_format: str
) -> None:
    reply = await client.post("/release_task", json={"mp3_bitrate": "128k", "audio_format": audio_format})
    assert reply.json()["data"]["warnings"] == [f"audio_bitrate: not used, {audio_format} has none"]
    assert desk.jobs[-1].request.audio_bitrate is None


@pytest.mark.parametrize("method", ["ode", "euler"])
@pytest.mark.parametrize(("mode", "taken"), [("euler", "ode"), ("heun", "heun")])
async def test_two_parameters_of_the_reference_name_one_sampler(
    client: httpx.AsyncClient, desk: FakeDesk, method: str, mode: str, taken: str
) -> None:
    request = await asked(client, desk, {"infer_method": method, "sampler_mode": mode})
    assert request.infer_method == taken


@pytest.mark.parametrize("written", ["drums | bass", "drums,bass", '["drums", "bass"]', ["drums", "bass", ""]])
async def test_tracks_may_be_listed_in_every_way_clients_do(
    client: httpx.AsyncClient, desk: FakeDesk, written: Any
) -> None:
    assert (await asked(client, desk, {"track_classes": written})).track_classes == ("drums", "bass")


@pytest.mark.parametrize(
    "written",
    [
        [{"name": "warm"}, {"name": "lo-fi", "scale": "1"}],
        ["warm", "lo-fi"],
        "warm, lo-fi",
        '["warm", {"name": "lo-fi"}]',
    ],
    ids=str,
)
async def test_adapters_may_be_listed_by_name_alone(client: httpx.AsyncClient, desk: FakeDesk, written: Any) -> None:
    request = await asked(client, desk, {"loras": written})
    assert request.loras == (Lora(name="warm"), Lora(name="lo-fi"))


@pytest.mark.parametrize("end", [0, -1, "-1", None, ""])
async def test_a_window_without_an_end_goes_to_the_sources_end(
    client: httpx.AsyncClient, desk: FakeDesk, end: Any
) -> None:
    request = await asked(client, desk, {"repainting_start": 3, "repainting_end": end})
    assert (request.repainting_start, request.repainting_end) == (3.0, None)


async def test_the_reference_clients_standing_instruction_is_none(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    standing = "Fill the audio semantic mask based on the given conditions:"
    assert (await asked(client, desk, {"instruction": standing})).instruction is None


async def test_a_retake_turns_each_song_to_a_seed_that_is_told(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    request = await asked(client, desk, {"retake_variance": 0.3, "retake_seed": "7,8"})
    assert request.retake_seeds == (7, 8)
    request = await asked(client, desk, {"retake_variance": 0.3, "retake_seed": 7})
    assert (request.retake_seeds[0], len(set(request.retake_seeds))) == (7, 2)
    assert len((await asked(client, desk, {"retake_variance": 0.3})).retake_seeds) == 2


async def test_a_retake_seed_that_is_not_used_is_reported(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    reply = await client.post("/release_task", json={"retake_seed": 7})
    assert reply.json()["data"]["warnings"] == ["retake_seed: not used, retake_variance is 0"]
    assert desk.jobs[-1].request.retake_seeds == ()


async def test_how_a_correction_is_made_does_not_matter_where_there_is_none(
    client: httpx.AsyncClient, desk: FakeDesk
) -> None:
    assert not (await asked(client, desk, {"dcw_mode": "low", "dcw_wavelet": "db4"})).dcw_enabled


async def test_a_list_of_codes_is_one_text_a_song_in_a_form_as_well(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    listed = '["<|audio_code_1|>", "<|audio_code_2|>"]'
    for body in ({"data": {"audio_code_string": listed}}, {"json": {"audio_code_string": json.loads(listed)}}):
        reply = await client.post("/release_task", **body)
        assert reply.status_code == 200, reply.text
        assert desk.jobs[-1].request.audio_codes == ((1,), (2,))
    await client.post("/release_task", json={"audio_code_string": ["<|audio_code_7|>"], "batch_size": 3})
    assert desk.jobs[-1].request.audio_codes == ((7,), (7,), (7,))


async def test_a_code_of_thousands_of_digits_is_refused(client: httpx.AsyncClient) -> None:
    reply = await client.post("/release_task", json={"audio_code_string": f"<|audio_code_{'9' * 5000}|>"})
    assert reply.status_code == 400


async def test_what_results_say_of_the_unknown_may_be_sent_back(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    metas = {"bpm": "N/A", "duration": "N/A", "timesignature": "N/A", "keyscale": "N/A"}
    assert (await client.post("/release_task", json={"metas": metas})).status_code == 200
    request = desk.jobs[-1].request
    assert (request.bpm, request.audio_duration, request.time_signature, request.key_scale) == (None,) * 4
