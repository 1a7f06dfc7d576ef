"""Tiny checkpoints with random weights in ACE-Step's own layout: `python -m models.tiny FOLDER`.

Shapes of the problem are real (64 latent channels, 25 frames and 5 codes a second, 48 kHz), widths and depths are not:
everything runs in seconds on a CPU, and every sound is noise.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AceStepTransformer1DModel, AutoencoderOobleck
from diffusers.pipelines.ace_step.modeling_ace_step import (
    AceStepAudioTokenDetokenizer,
    AceStepAudioTokenizer,
    AceStepConditionEncoder,
)
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from models.checkpoints import LMS, TEXT_ENCODER, TINY_MARK, TINY_VERSION, VAE, are_tiny
from models.errors import CheckpointError
from models.weights import dit_config, original_name

AUDIO_CODES = 2000  # of the 64,000 real ones; enough to look different, few enough to load at once
SILENCE_FRAMES = 15_000
LM = "acestep-5Hz-lm-0.6B"

DIT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "in_channels": 192,
    "audio_acoustic_hidden_dim": 64,
    "patch_size": 2,
    "rope_theta": 1_000_000,
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "text_hidden_dim": 64,
    "timbre_hidden_dim": 64,
    "timbre_fix_frame": 750,
    "num_lyric_encoder_hidden_layers": 2,
    "num_timbre_encoder_hidden_layers": 2,
    "num_attention_pooler_hidden_layers": 2,
    "pool_window_size": 5,
    "fsq_dim": 64,
    "fsq_input_levels": [8, 8, 8, 5, 5, 5],
    "fsq_input_num_quantizers": 1,
    "model_type": "acestep",
    "dtype": "bfloat16",
}
XL: dict[str, Any] = DIT | {
    "hidden_size": 80,
    "num_attention_heads": 8,  # 8 x 16 is not 80: the attention is wider than the model, as in the real XL
    "encoder_hidden_size": 64,
    "encoder_intermediate_size": 160,
    "encoder_num_attention_heads": 4,
    "encoder_num_key_value_heads": 2,
}
VARIANTS = {
    "acestep-v15-turbo": DIT | {"is_turbo": True, "model_version": "turbo"},
    "acestep-v15-base": DIT | {"is_turbo": False, "model_version": "base"},
    "acestep-v15-xl-turbo": XL | {"is_turbo": True, "model_version": "turbo"},
}
VAE_CONFIG: dict[str, Any] = {
    "encoder_hidden_size": 128,  # the encoder's output: a mean and a scale for each of 64 channels
    "downsampling_ratios": [2, 4, 4, 6, 10],
    "channel_multiples": [1, 1, 1, 1, 1],
    "decoder_channels": 4,
    "decoder_input_channels": 64,
    "audio_channels": 2,
    "sampling_rate": 48_000,
}
QWEN: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # the least that vLLM's attention on a CPU knows
    "max_position_embeddings": 32_768,
    "rope_theta": 1_000_000,
    "tie_word_embeddings": True,
}
# Renders what Qwen3's own template does for these turns: an assistant's thought is set off by blank lines.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' and '</think>' in message.content -%}
{%- set thought, _, answer = message.content.partition('</think>') -%}
{{- '<think>\\n' + thought.split('<think>')[-1].strip('\\n') + '\\n</think>\\n\\n' + answer.lstrip('\\n') -}}
{%- else -%}{{- message.content -}}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
# what the tokenizer's merges are learnt from: the words that every prompt holds
WORDS = """\
# Instruction Fill the audio semantic mask based on the given conditions: Generate audio semantic tokens based on
the given conditions: Understand the given musical conditions and describe the audio semantics accordingly: Expand
the user's input into a more detailed and specific musical description: Format the user's input into a more
detailed and specific musical description: # Caption # Lyric # Lyrics # Languages # Metas - bpm: - timesignature: -
keyscale: - duration: seconds N/A bpm: caption: duration: genres: keyscale: language: timesignature: major minor
instrumental: true false unknown [Verse] [Chorus] [Bridge] [Intro] [Outro] [Instrumental] a song with piano,
guitar, drums, bass and a warm female voice; an upbeat pop song, calm jazz, slow ballad, electronic dance music,
rock, folk, love, night, day, rain, light
"""
# Qwen's splitting rule: contractions, words, single digits, punctuation, line ends, spaces
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tiny(root: Path) -> None:
    """Writes every tiny checkpoint below `root`, all or nothing; those of another version give way to them.

    Does nothing when they are there. Raises CheckpointError when `root` holds something else.
    """
    if are_tiny(root):
        return
    if root.exists() and any(root.iterdir()) and not are_tiny(root, version=None):
        raise CheckpointError(f"{root} holds something other than tiny checkpoints; name another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".tiny-") as folder:
        draft = Path(folder) / root.name
        _write_all(draft)
        try:
            if root.exists():
                root.rename(Path(folder) / "old")
            draft.rename(root)
        except OSError:
            if not are_tiny(root):  # another process was first
                raise


def _write_all(root: Path) -> None:
    root.mkdir()
    with torch.random.fork_rng(devices=[]):
        for number, (name, config) in enumerate(VARIANTS.items()):
            torch.manual_seed(number)
            _write_dit(root / name, config)
        torch.manual_seed(100)
        _write_vae(root / VAE)
        torch.manual_seed(101)
        tokenizer = make_tokenizer(audio_codes=0)
        _write_qwen(root / TEXT_ENCODER, Qwen3Model, tokenizer)
        tokenizer = make_tokenizer(AUDIO_CODES)
        for number, name in enumerate(LMS):
            torch.manual_seed(102 + number)
            _write_qwen(root / name, Qwen3ForCausalLM, tokenizer)
    (root / TINY_MARK).write_text(json.dumps({"version": TINY_VERSION, "weights": "random"}))


def _write_dit(folder: Path, raw: Mapping[str, Any]) -> None:
    folder.mkdir()
    config = dit_config(raw)
    parts: dict[str, nn.Module] = {
        "transformer": AceStepTransformer1DModel(**config.transformer),
        "condition_encoder": AceStepConditionEncoder(**config.condition_encoder),
        "audio_tokenizer": AceStepAudioTokenizer(**config.audio_tokenizer),
        "audio_detokenizer": AceStepAudioTokenDetokenizer(**config.audio_detokenizer),
    }
    tensors = {
        original_name(part, name): tensor
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
        if name != "silence_latent"
    }
    _save(tensors, folder / "model.safetensors")
    silence = torch.randn(1, 64, SILENCE_FRAMES) * 0.1
    torch.save(silence.bfloat16(), folder / "silence_latent.pt")
    (folder / "config.json").write_text(json.dumps(raw, indent=2))


def _write_vae(folder: Path) -> None:
    folder.mkdir()
    vae = AutoencoderOobleck(**VAE_CONFIG)
    _save(vae.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderOobleck", **VAE_CONFIG}, indent=2))


def _write_qwen(folder: Path, kind: type[nn.Module], tokenizer: PreTrainedTokenizerFast) -> None:
    config = Qwen3Config(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **QWEN
    )
    model: Any = kind(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer(audio_codes: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with Qwen3's control tokens and thinking tags, and this many audio codes."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        [WORDS], trainers.BpeTrainer(vocab_size=1024, initial_alphabet=alphabet, show_progress=False)
    )
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    codes = [f"<|audio_code_{code}|>" for code in range(audio_codes)]
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*control, *codes)])
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().bfloat16().contiguous() for name, tensor in tensors.items()}, path)


if __name__ == "__main__":
    write_tiny(Path(sys.argv[1]))
