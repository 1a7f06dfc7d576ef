import hashlib
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from models.checkpoints import LMS, TEXT_ENCODER, TINY_MARK, VAE, VARIANTS, are_tiny
from models.errors import CheckpointError
from models.tiny import AUDIO_CODES, LM, write_tiny


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_bytes_come_out_every_time(tiny: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "again")
    seen, first = digests(tmp_path / "again"), digests(tiny)
    assert {name for name in first if seen.get(name) != first[name]} == set()


def test_it_writes_a_turbo_a_base_and_an_xl_variant_and_all_around_them(tiny: Path) -> None:
    folders = {path.name for path in tiny.iterdir() if path.is_dir()}
    assert folders == {"acestep-v15-turbo", "acestep-v15-base", "acestep-v15-xl-turbo", VAE, TEXT_ENCODER, *LMS}
    assert folders - {VAE, TEXT_ENCODER} <= {*VARIANTS, *LMS}
    assert sum(path.stat().st_size for path in tiny.rglob("*") if path.is_file()) < 25e6


def test_a_second_time_changes_nothing(tiny: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    write_tiny(tiny)
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


def test_somebody_elses_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(CheckpointError, match="something other"):
        write_tiny(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_another_version_wrote_gives_way(tmp_path: Path) -> None:
    (tmp_path / TINY_MARK).write_text('{"version": 0}')
    (tmp_path / "old").mkdir()
    assert not are_tiny(tmp_path)

    write_tiny(tmp_path)

    assert are_tiny(tmp_path)
    assert not (tmp_path / "old").exists()


def test_the_lm_tokenizer_knows_thinking_codes_and_single_digits(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny / LM)
    for token in (
        "<|im_start|>",
        "<|im_end|>",
        "<think>",
        "</think>",
        "<|audio_code_0|>",
        f"<|audio_code_{AUDIO_CODES - 1}|>",
    ):
        assert tokenizer(token, add_special_tokens=False).input_ids == [tokenizer.convert_tokens_to_ids(token)]
    assert len(tokenizer("120", add_special_tokens=False).input_ids) == 3
    text = "# Caption\nÉté 夏 with 🎹\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
