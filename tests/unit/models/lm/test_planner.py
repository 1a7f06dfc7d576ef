"""What the LM is asked, and what is made of its answers, held against the reference's calls with canned answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from models.errors import BadPlan, TooLong, UnknownModel
from models.lm.backends.backend import OnToken, Run
from models.lm.constraints import Then
from models.lm.engine import LmEngine
from models.lm.prompts import codes_text
from models.lm.sampling import Order
from models.lm.vocabulary import Vocabulary
from models.music import Metas, MusicRequest, SongPlan

GOLDEN = Path(__file__).parents[3] / "golden" / "lm"
FLOWS = json.loads((GOLDEN / "generate_flow.json").read_text(encoding="utf-8"))["cases"]
TASKS = json.loads((GOLDEN / "tasks.json").read_text(encoding="utf-8"))["cases"]
REQUESTS = json.loads((GOLDEN / "requests.json").read_text(encoding="utf-8"))["cases"]

BLOCK = "<think>\nbpm: 88\ncaption: Warm jazz trio.\nduration: 125\nkeyscale: D minor\nlanguage: en\ntimesignature: 4\n"
METADATA = f"{BLOCK}<|im_end|>"
SONG = f"{BLOCK}</think>\n\n# Lyric\n[Verse]\nLate night\n<|im_end|>"
CODES = "<|audio_code_1|><|audio_code_22|><|audio_code_333|><|im_end|>"


class CannedBackend:
    """Answers with texts in turn, the last of them for ever, and keeps what it was asked."""

    name = "vllm"
    order = Order.TEMPERED

    def __init__(self, vocabulary: Vocabulary, *answers: str) -> None:
        self._vocabulary = vocabulary
        self._answers = list(answers)
        self.runs: list[Run] = []
        self.at_once = 0
        self._now = 0

    async def generate(self, run: Run, on_token: OnToken) -> list[int]:
        self.runs.append(run)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        self._now += 1
        self.at_once = max(self.at_once, self._now)
        ids = self._vocabulary.encode(answer)
        for _ in ids:
            await asyncio.sleep(0)
            on_token()
        self._now -= 1
        return ids

    async def check_health(self) -> None:
        pass

    def close(self) -> None:
        pass

    def prompts(self) -> list[tuple[str, str | None]]:
        text = self._vocabulary.decode
        return [
            (text(run.prompt), None if run.unguided_prompt is None else text(run.unguided_prompt)) for run in self.runs
        ]


def engine_with(vocabulary: Vocabulary, *answers: str) -> tuple[LmEngine, CannedBackend]:
    backend = CannedBackend(vocabulary, *answers)
    return LmEngine(GOLDEN / "tokenizer", backend=backend), backend


def asked(**values: Any) -> MusicRequest:
    return MusicRequest(**({"model": "any", "prompt": "c", "lyrics": "l", "seeds": (1,)} | values))


def planned(engine: LmEngine, request: MusicRequest) -> tuple[SongPlan, ...]:
    return asyncio.run(engine.plan(request))


def request_of_flow(inputs: Mapping[str, Any]) -> MusicRequest | None:
    """`None` for what never reaches an LM here: lengths out of range, switches this API does not have."""
    given = inputs["user_metadata"] or {}
    seconds = inputs["target_duration"] if (inputs["target_duration"] or 0) > 0 else given.get("duration")
    is_odd = given.get("duration") not in (None, seconds)  # here a song has one length
    if is_odd or "use_cot_metas" in inputs or inputs["infer_type"].strip().lower() == "other":
        return None
    try:
        return asked(
            prompt=inputs["caption"],
            lyrics=inputs["lyrics"],
            thinking=inputs["infer_type"].strip().lower() == "llm_dit",
            bpm=given.get("bpm"),
            key_scale=given.get("keyscale"),
            time_signature=given.get("timesignature"),
            audio_duration=seconds,
            lm_temperature=inputs["temperature"],
            lm_top_k=inputs["top_k"] or 0,
            lm_top_p=inputs["top_p"] or 1.0,
            lm_cfg_scale=inputs["cfg_scale"],
            lm_negative_prompt=inputs["negative_prompt"],
            use_cot_caption=inputs["use_cot_caption"],
            use_cot_language=inputs["use_cot_language"],
            constrained_decoding=inputs.get("use_constrained_decoding", True),
            seeds=tuple(range(inputs.get("batch_size", 1))),
        )
    except ValidationError:
        return None


SERVED_FLOWS = [
    (case, request)
    for case in FLOWS
    if (request := request_of_flow(case["inputs"])) is not None and "" not in case["lm_outputs"]
]


def test_most_of_the_references_flows_are_served() -> None:
    assert len(SERVED_FLOWS) >= 15


@pytest.mark.parametrize(("case", "request_"), SERVED_FLOWS, ids=[case["id"] for case, _ in SERVED_FLOWS])
def test_the_lm_is_asked_what_the_reference_asks(
    case: dict[str, Any], request_: MusicRequest, vocabulary: Vocabulary
) -> None:
    outputs = case["lm_outputs"]
    # the canned codes are too few for a song here, whether its length was given or not
    codes = "<|audio_code_7|>" * int((request_.audio_duration or 20) * 5) + "<|im_end|>"
    answers = [codes if "audio_code" in output else output for output in outputs] or [METADATA]
    engine, backend = engine_with(vocabulary, *answers)

    plans = planned(engine, request_)

    calls = [call for call in case["calls"] for _ in range(call["n_prompts"])]
    assert len(backend.runs) == len(calls)
    for run, call in zip(backend.runs, calls, strict=True):
        rules, sampling = run.decoding.rules, run.decoding.sampling
        assert run.decoding.scale == call["cfg_scale"]
        assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.repetition_penalty) == (
            call["temperature"],
            call["top_k"] or 0,
            call["top_p"] or 1.0,
            1.0,
        )
        assert rules.is_constrained is call["use_constrained_decoding"]
        if call["generation_phase"] == "cot":
            skipped = frozenset(name for name in ("genres", "caption", "language") if call[f"skip_{name}"])
            assert (rules.skipped, rules.then) == (skipped, Then.NOTHING)
        else:
            assert rules.begins_with_codes
            assert rules.fewest_codes == (int(request_.audio_duration * 5) if request_.audio_duration else 50)
    # where the caller gave values, they stand in the block in place of the canned ones
    alike = len(calls) if request_.metas == Metas() else 1 if calls and calls[0]["generation_phase"] == "cot" else 0
    assert backend.prompts()[:alike] == [(call["prompt"], call["uncond_prompt"]) for call in calls[:alike]]
    expected = (7,) * int((request_.audio_duration or 20) * 5) if request_.thinking else ()
    assert [plan.codes for plan in plans] == [expected] * request_.songs


@pytest.mark.parametrize("case", TASKS, ids=lambda case: case["id"])
def test_a_song_is_described_as_the_reference_describes_it(case: dict[str, Any], vocabulary: Vocabulary) -> None:
    inputs, call, expected = case["inputs"], case["api_call"], case["api_result"]
    engine, backend = engine_with(vocabulary, case["lm_output"] or "<|im_end|>")

    async def describe() -> SongPlan:
        if case["task"] == "create_sample":
            language = (inputs.get("vocal_language") or "").strip().lower() or None
            return await engine.create_sample(inputs["query"], inputs["instrumental"], language)
        if case["task"] == "format":
            given = inputs["user_metadata"] or {}
            song = SongPlan(
                caption=inputs["caption"],
                lyrics=inputs["lyrics"],
                language=given.get("language", "unknown"),
                metas=metas_of_golden(call["user_metadata"] or {}),
            )
            return await engine.format(song)
        return await engine.understand(codes_of_golden(inputs["audio_codes"]))

    if not expected["success"]:
        with pytest.raises(BadPlan):
            asyncio.run(describe())
        return
    song = asyncio.run(describe())

    if (
        case["task"] != "understand"
        or inputs["audio_codes"] == codes_text(codes_of_golden(inputs["audio_codes"])) != ""
    ):
        assert backend.prompts()[0][0] == call["prompt"]
    assert (song.caption, song.lyrics) == (expected["caption"], expected["lyrics"])
    assert song.metas == metas_of_golden(expected)
    assert song.language == (expected["language"] or "unknown")
    given = call["user_metadata"] or {}
    assert backend.runs[0].decoding.rules.given == {name: str(value) for name, value in given.items()}
    assert ("language" in backend.runs[0].decoding.rules.skipped) is call["skip_language"]


def metas_of_golden(values: Mapping[str, Any]) -> Metas:
    return Metas(
        bpm=values.get("bpm"),
        key_scale=values.get("keyscale") or None,
        time_signature=values.get("timesignature") or None,
        duration=values.get("duration"),
    )


def codes_of_golden(text: str) -> tuple[int, ...]:
    return tuple(int(part.split("|>")[0]) for part in text.split("audio_code_")[1:])


@pytest.mark.parametrize("case", [c for c in REQUESTS if c["lm_call"] is None], ids=lambda case: case["id"])
def test_tasks_on_given_audio_do_without_the_lm(case: dict[str, Any], vocabulary: Vocabulary) -> None:
    engine, backend = engine_with(vocabulary, METADATA)

    (plan,) = planned(engine, asked(task_type=case["params"]["task_type"], thinking=True))

    assert backend.runs == []
    assert (plan.caption, plan.lyrics, plan.codes, plan.lm_model) == ("c", "l", (), None)


def test_what_the_caller_gave_is_written_by_force_and_comes_back(vocabulary: Vocabulary) -> None:
    engine, backend = engine_with(vocabulary, METADATA)

    (plan,) = planned(engine, asked(bpm=70, key_scale="a minor", audio_duration=33.4, vocal_language="fr"))

    assert backend.runs[0].decoding.rules.given == {
        "bpm": "70",
        "keyscale": "A minor",
        "duration": "33",
        "language": "fr",
    }
    assert plan.metas == Metas(bpm=70, key_scale="A minor", time_signature="4", duration=33.4)
    assert (plan.language, plan.caption) == ("fr", "Warm jazz trio.")


def test_a_request_with_all_metadata_goes_to_the_codes_at_once(vocabulary: Vocabulary) -> None:
    engine, backend = engine_with(vocabulary, "<|audio_code_7|>" * 50 + "<|im_end|>")
    request = asked(bpm=70, key_scale="A minor", time_signature="3", audio_duration=10.0, thinking=True)

    (plan,) = planned(engine, request)

    assert len(backend.runs) == 1
    assert "bpm: 70\nduration: 10\nkeyscale: A minor\ntimesignature: 3" in backend.prompts()[0][0]
    assert (plan.caption, len(plan.codes)) == ("c", 50)


def test_codes_of_the_caller_are_kept_and_no_others_written(vocabulary: Vocabulary) -> None:
    engine, backend = engine_with(vocabulary, METADATA)

    (plan,) = planned(engine, asked(thinking=True, audio_codes=((5, 6),)))

    assert plan.codes == (5, 6)
    assert [run.decoding.rules.begins_with_codes for run in backend.runs] == [False]


def test_a_query_becomes_a_whole_song_but_for_what_the_caller_gave(vocabulary: Vocabulary) -> None:
    engine, backend = engine_with(vocabulary, SONG)

    (plan,) = planned(engine, asked(prompt="", lyrics="", bpm=70, sample_query="a french song"))

    assert "a french song\n\ninstrumental: false" in backend.prompts()[0][0]
    assert backend.runs[0].decoding.rules.given == {"language": "fr"}
    assert len(backend.runs) == 1  # the sample has all metadata, nothing is asked twice
    assert (plan.caption, plan.lyrics) == ("Warm jazz trio.", "[Verse]\nLate night")
    assert plan.metas == Metas(bpm=70, key_scale="D minor", time_signature="4", duration=125)


def test_an_empty_query_is_a_surprise(vocabulary: Vocabulary) -> None:
    engine, backend = engine_with(vocabulary, SONG)
    planned(engine, asked(prompt="", lyrics="", sample_query=""))
    assert "NO USER INPUT\n\ninstrumental: false" in backend.prompts()[0][0]


def test_a_format_rewrites_the_words_and_keeps_the_callers_metadata(vocabulary: Vocabulary) -> None:
    engine, backend = engine_with(vocabulary, SONG, METADATA)

    (plan,) = planned(engine, asked(use_format=True, time_signature="3"))

    assert "# Caption\nc\n\n# Lyric\nl" in backend.prompts()[0][0]
    assert backend.runs[0].decoding.rules.given == {"timesignature": "3"}
    assert (plan.lyrics, plan.metas.time_signature, plan.metas.bpm) == ("[Verse]\nLate night", "3", 88)


def test_a_song_is_described_without_metadata_phase_or_codes(vocabulary: Vocabulary) -> None:
    engine, backend = engine_with(vocabulary, SONG)
    request = asked(prompt="", lyrics="[Instrumental]", sample_query="a french song", bpm=70, thinking=True)

    song = asyncio.run(engine.describe(request))

    assert "a french song\n\ninstrumental: true" in backend.prompts()[0][0]
    assert len(backend.runs) == 1
    assert (song.caption, song.lyrics, song.codes) == ("Warm jazz trio.", "[Instrumental]", ())
    assert song.metas == Metas(bpm=70, key_scale="D minor", time_signature="4", duration=125)


@pytest.mark.parametrize(("allowed", "at_once"), [(True, 3), (False, 1)])
def test_songs_of_a_job_are_written_side_by_side_unless_forbidden(
    allowed: bool, at_once: int, vocabulary: Vocabulary
) -> None:
    engine, backend = engine_with(vocabulary, METADATA, "<|audio_code_7|>" * 50 + "<|im_end|>")

    planned(engine, asked(thinking=True, audio_duration=10.0, seeds=(1, 2, 3), allow_lm_batch=allowed))

    assert backend.at_once == at_once
    assert [run.decoding.seed for run in backend.runs] == [1, 1, 2, 3]


def test_progress_only_grows_and_ends_at_what_was_planned(vocabulary: Vocabulary) -> None:
    engine, _ = engine_with(vocabulary, METADATA, "<|audio_code_7|>" * 50 + "<|im_end|>")
    seen: list[tuple[int, int]] = []

    request = asked(thinking=True, audio_duration=10.0, seeds=(1, 2))
    asyncio.run(engine.plan(request, lambda done, planned: seen.append((done, planned))))

    shares = [done / planned for done, planned in seen]
    assert shares == sorted(shares)
    assert seen[-1][0] == seen[-1][1] > 100


def test_progress_never_falls_when_a_phase_takes_longer_than_thought(vocabulary: Vocabulary) -> None:
    long = SONG.replace("Warm jazz trio.", "word " * 300).replace("duration: 125\n", "")
    engine, _ = engine_with(vocabulary, long, METADATA.replace("Warm", "warm " * 200), "<|audio_code_7|>" * 90)
    seen: list[float] = []

    request = asked(use_format=True, thinking=True, bpm=70)
    asyncio.run(engine.plan(request, lambda done, planned: seen.append(done / planned)))

    assert seen == sorted(seen)
    assert seen[0] < 0.1


def test_codes_of_the_caller_settle_the_length(vocabulary: Vocabulary) -> None:
    engine, backend = engine_with(vocabulary, METADATA)

    (plan,) = planned(engine, asked(audio_codes=((7,) * 100,)))

    assert plan.metas.duration == 20.0
    assert backend.runs[0].decoding.rules.given == {"duration": "20"}


def test_a_language_given_stands_where_the_lm_would_name_one(vocabulary: Vocabulary) -> None:
    engine, backend = engine_with(vocabulary, METADATA, "<|audio_code_7|>" * 50 + "<|im_end|>")

    (plan,) = planned(engine, asked(vocal_language="fr", thinking=True, audio_duration=10.0))

    assert backend.runs[0].decoding.rules.given["language"] == "fr"
    assert "language: fr" in backend.prompts()[1][0]
    assert plan.language == "fr"


def test_values_no_song_can_have_are_not_read_back_to_the_lm(vocabulary: Vocabulary) -> None:
    odd = METADATA.replace("bpm: 88", "bpm: 120.5").replace("language: en", "language: xx")
    engine, backend = engine_with(vocabulary, odd, "<|audio_code_7|>" * 50 + "<|im_end|>")

    planned(engine, asked(thinking=True, audio_duration=10.0))

    assert "120.5" not in backend.prompts()[1][0]
    assert "language" not in backend.prompts()[1][0]
    assert "keyscale: D minor" in backend.prompts()[1][0]


def test_a_song_cut_for_want_of_room_says_so(vocabulary: Vocabulary) -> None:
    engine, _ = engine_with(vocabulary, METADATA, "<|audio_code_7|>" * 55)

    (plan,) = planned(engine, asked(thinking=True))

    assert plan.remarks == ("audio_duration: not given, and the LM had room for 55 codes only",)
    assert plan.metas.duration == 11.0


def test_words_of_a_sample_are_no_longer_than_a_caller_may_send(vocabulary: Vocabulary) -> None:
    engine, _ = engine_with(vocabulary, SONG.replace("Late night", "la " * 4000))
    (plan,) = planned(engine, asked(prompt="", lyrics="", sample_query="long"))
    assert len(plan.lyrics) <= 8192


def test_switched_off_constraints_are_off_in_every_phase(vocabulary: Vocabulary) -> None:
    codes = "so <|audio_code_7|>" * 60 + "<|audio_code_64000|><|im_end|>"
    engine, backend = engine_with(vocabulary, METADATA, codes)

    (plan,) = planned(engine, asked(thinking=True, audio_duration=10.0, constrained_decoding=False))

    assert [run.decoding.rules.is_constrained for run in backend.runs] == [False, False]
    assert plan.codes == (7,) * 50  # never more than asked, never one above the limit


def test_a_trace_tells_each_phase_step_by_step(vocabulary: Vocabulary) -> None:
    codes = "<|audio_code_7|>" * 50 + "<|im_end|>"
    engine, _ = engine_with(vocabulary, SONG.replace("duration: 125\n", ""), METADATA, codes)
    request = asked(use_format=True, thinking=True, seeds=(9,), constrained_decoding_debug=True)

    (plan,) = planned(engine, request)

    assert plan.trace[0].startswith("description 0: open, 1 allowed, wrote '<think>'")
    assert any(line.startswith("metadata ") and "value of keyscale" in line for line in plan.trace)
    assert plan.trace[-1].startswith("codes of seed 9 50: codes, ")
    assert plan.trace[-1].endswith("allowed, wrote '<|im_end|>'")


def test_no_trace_is_kept_unless_asked_for(vocabulary: Vocabulary) -> None:
    engine, _ = engine_with(vocabulary, METADATA)
    (plan,) = planned(engine, asked())
    assert plan.trace == ()


def test_a_backend_asked_for_that_does_not_run_is_told_not_ignored(vocabulary: Vocabulary) -> None:
    engine, _ = engine_with(vocabulary, METADATA)

    (plan,) = planned(engine, asked(lm_backend="pt"))

    assert plan.remarks == ("lm_backend: pt asked, tokenizer runs on vllm",)
    (plan,) = planned(engine, asked())
    assert plan.remarks == ()


def test_another_lms_name_is_refused(vocabulary: Vocabulary) -> None:
    engine, _ = engine_with(vocabulary, METADATA)
    with pytest.raises(UnknownModel, match="'other'"):
        planned(engine, asked(lm_model="other"))


def test_a_prompt_that_leaves_no_room_is_too_long(vocabulary: Vocabulary) -> None:
    engine, _ = engine_with(vocabulary, METADATA)
    with pytest.raises(TooLong, match="room for 8192"):
        planned(engine, asked(lyrics="la " * 2700, audio_duration=600.0, thinking=True, bpm=70))


def test_too_few_codes_for_the_length_asked_fail_the_song(vocabulary: Vocabulary) -> None:
    engine, _ = engine_with(vocabulary, METADATA, CODES)
    with pytest.raises(BadPlan, match="3 audio codes where at least 50"):
        planned(engine, asked(thinking=True, audio_duration=10.0))


def test_codes_are_understood_as_a_request_says(vocabulary: Vocabulary) -> None:
    engine, backend = engine_with(vocabulary, SONG)

    song = asyncio.run(engine.understand((1, 2), asked(lm_temperature=0.3, seeds=(9,), lm_backend="pt")))

    (run,) = backend.runs
    assert (run.decoding.sampling.temperature, run.decoding.seed) == (0.3, 9)
    assert (song.caption, song.metas.bpm) == ("Warm jazz trio.", 88)
    assert [remark.split(":")[0] for remark in song.remarks] == ["lm_backend"]
    with pytest.raises(UnknownModel):
        asyncio.run(engine.understand((1, 2), asked(lm_model="another")))
