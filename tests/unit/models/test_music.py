import pytest
from pydantic import ValidationError

from models.music import KEYSCALES, LANGUAGES, MusicRequest, codes_of, frames_of


def request(**fields: object) -> MusicRequest:
    return MusicRequest.model_validate({"model": "acestep-v15-turbo", "seeds": (1,), **fields})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("C Major", "C major"),
        ("Am", "A minor"),
        ("c# min", "C# minor"),
        ("F♯ Minor", "F♯ minor"),
        ("Bb", "Bb major"),
        ("G maj", "G major"),
        ("CM", "C major"),
        ("Eb-minor", "Eb minor"),
    ],
)
def test_a_key_is_understood_however_it_is_written(written: str, meant: str) -> None:
    assert request(key_scale=written).key_scale == meant


@pytest.mark.parametrize("nonsense", ["H major", "C dorian", "", "Am7"])
def test_a_key_that_is_none_is_refused_with_an_example_of_one(nonsense: str) -> None:
    with pytest.raises(ValidationError, match="C# minor"):
        request(key_scale=nonsense)


@pytest.mark.parametrize(("written", "beats"), [("4/4", "4"), ("6/8", "6"), (3, "3"), (" 2 ", "2"), ("2/4", "2")])
def test_a_time_signature_is_the_beats_of_a_bar(written: object, beats: str) -> None:
    assert request(time_signature=written).time_signature == beats


@pytest.mark.parametrize("nonsense", ["5", "4/8", 7, "", "four"])
def test_a_time_signature_outside_the_four_is_refused(nonsense: object) -> None:
    with pytest.raises(ValidationError, match="time_signature"):
        request(time_signature=nonsense)


def test_there_are_seventy_keys_and_fifty_one_languages() -> None:
    assert len(set(KEYSCALES)) == 70
    assert len(set(LANGUAGES)) == 51


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("audio_duration", 9.9),
        ("audio_duration", 601),
        ("audio_duration", float("nan")),
        ("bpm", 29),
        ("bpm", 301),
        ("seeds", ()),
        ("seeds", tuple(range(9))),
        ("seeds", (-1,)),
        ("seeds", (2**32,)),
        ("shift", 0.9),
        ("guidance_scale", float("inf")),
        ("inference_steps", 0),
        ("timesteps", (1.5, 0.5)),
        ("audio_codes", ((64_000,),)),
        ("audio_codes", ((1,), (2,))),
        ("lm_top_p", 0.0),
        ("vocal_language", "klingon"),
        ("loudness", 3),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(
        ValidationError, match=field if field != "audio_codes" or value == ((64_000,),) else "one for each"
    ):
        request(**{field: value})


@pytest.mark.parametrize("seconds", [10, 10.0, 600, 600.0, 59.9])
def test_durations_from_ten_seconds_to_ten_minutes_are_taken(seconds: float) -> None:
    assert request(audio_duration=seconds).audio_duration == seconds


def test_a_guidance_interval_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(ValidationError, match="is after cfg_interval_end"):
        request(cfg_interval_start=0.8, cfg_interval_end=0.2)


@pytest.mark.parametrize("lyrics", ["", "  \n", "[inst]", " [Instrumental] "])
def test_lyrics_without_words_mean_an_instrumental(lyrics: str) -> None:
    assert request(lyrics=lyrics).is_instrumental


@pytest.mark.parametrize(
    ("seconds", "frames", "codes"), [(10, 250, 50), (10.1, 252, 50), (59.96, 1500, 299), (600, 15_000, 3000)]
)
def test_a_second_is_25_frames_and_5_codes(seconds: float, frames: int, codes: int) -> None:
    assert (frames_of(seconds), codes_of(seconds)) == (frames, codes)


def test_a_request_survives_the_trip_through_json() -> None:
    asked = request(lyrics="[verse]\nÉté 夏", timesteps=(0.9, 0.5), audio_codes=((1, 2),), key_scale="Am")
    assert MusicRequest.model_validate_json(asked.model_dump_json()) == asked


def test_a_window_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValidationError, match="repainting_end 3 s is not after repainting_start 5 s"):
        request(repainting_start=5, repainting_end=3)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"retake_seeds": (1, 2), "retake_variance": 0.5}, "2 retake seeds for 1 songs"),
        ({"retake_seeds": (1,)}, "retake_variance 0 with 1"),
        ({"retake_variance": 0.5}, "retake_variance 0.5 with 0"),
    ],
)
def test_a_retake_needs_a_seed_for_each_song_and_how_far_to_go(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        request(**fields)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", ".x", "", "x" * 200, "a\nb"])
def test_an_adapters_name_is_no_path(name: str) -> None:
    with pytest.raises(ValidationError, match="loras"):
        request(loras=[{"name": name}])


def test_an_adapter_is_named_once() -> None:
    with pytest.raises(ValidationError, match="names an adapter twice"):
        request(loras=[{"name": "a"}, {"name": "a", "scale": 0.5}])
