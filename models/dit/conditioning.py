"""What a song is made from, as the DiT takes it: prompts, their hidden states, timbre, and source latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.transformers.ace_step_transformer import _ace_step_rotary_freqs, _create_4d_mask
from diffusers.pipelines.ace_step.modeling_ace_step import (
    AceStepAudioTokenDetokenizer,
    AceStepAudioTokenizer,
    AceStepConditionEncoder,
)
from torch import Tensor, nn

from models.dit.stepping import Condition, Conditions
from models.errors import TooLong
from models.music import (
    FRAMES_PER_SECOND,
    INSTRUMENTAL_LYRICS,
    Metas,
    MusicRequest,
    Song,
    SongPlan,
    Task,
    frames_of,
)
from models.weights import DitWeights, load_strictly, read_text_encoder

M = TypeVar("M", bound=nn.Module)

TEXT_TOKENS = 256
LYRIC_TOKENS = 2048
FRAMES_PER_CODE = 5
INSTRUCTIONS = {
    Task.TEXT2MUSIC: "Fill the audio semantic mask based on the given conditions:",
    Task.COVER: "Generate audio semantic tokens based on the given conditions:",
}


class Conditioner:
    """Text encoder, condition encoder and audio tokenizer of one variant."""

    def __init__(self, weights: DitWeights, text_encoder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self._encoder = build_condition_encoder(weights).to(device, dtype)
        self._codes = build_audio_codes(weights).to(device, dtype)
        self._tokenizer, text_model = read_text_encoder(text_encoder, dtype)
        self._text_model: Any = text_model.to(device)
        self._silence = weights.silence.to(device, torch.float32)
        self._device = device
        self._dtype = dtype
        self.null = weights.null_condition[0].to(device, dtype)  # (1, width): one token does for any number
        self._silent_timbre = self._encoder.timbre(self._silence[None, : weights.config.timbre_frames].to(dtype))

    def conditions_of(self, song: Song) -> Conditions:
        """Raises TooLong where the song outlasts the checkpoint's silence latent."""
        request, plan = song.request, song.plan
        frames = self._frames_of(plan.metas)
        lyrics, lyric_cut = self._tokens(lyric_prompt(plan.language, plan.lyrics), LYRIC_TOKENS, "lyrics")
        prompt = text_prompt(instruction_of(request, plan), plan.caption, plan.metas)
        text, text_cut = self._tokens(prompt, TEXT_TOKENS, "caption and metadata")
        first = Condition(self._condition(text, lyrics), self._context(self._source(plan.codes, frames)))
        then, not_applied = self._after_letting_go(request, plan, lyrics, frames)
        return Conditions(first, then, text_cut + lyric_cut + not_applied)

    def _frames_of(self, metas: Metas) -> int:
        assert metas.duration is not None, "the pipeline settles every song's length"
        frames = frames_of(metas.duration)
        if frames > len(self._silence):
            most = len(self._silence) // FRAMES_PER_SECOND
            raise TooLong(f"{metas.duration:g} s asked; this checkpoint makes at most {most} s")
        return frames

    def _condition(self, text: Tensor, lyrics: Tensor) -> Tensor:
        """(token, width) from two rows of token ids."""
        text_states = self._text_model(input_ids=text).last_hidden_state
        lyric_states = self._text_model.get_input_embeddings()(lyrics)
        return self._encoder.pack(text_states, lyric_states, self._silent_timbre)

    def _context(self, source: Tensor) -> Tensor:
        """Source latents beside a chunk mask of 1: everything is to be generated."""
        return torch.cat([source, torch.ones_like(source)], dim=-1)

    def _after_letting_go(
        self, request: MusicRequest, plan: SongPlan, lyrics: Tensor, frames: int
    ) -> tuple[Condition | None, tuple[str, ...]]:
        """What a song with codes goes on with where `audio_cover_strength` is below 1: plain text2music."""
        if request.audio_cover_strength == 1.0:
            return None, ()
        if not plan.codes:
            return None, ("audio_cover_strength: not applied, the song has no audio codes to let go of",)
        prompt = text_prompt(INSTRUCTIONS[Task.TEXT2MUSIC], plan.caption, plan.metas)
        text, _ = self._tokens(prompt, TEXT_TOKENS, "caption and metadata")
        return Condition(self._condition(text, lyrics), self._context(self._silence[:frames])), ()

    def _source(self, codes: tuple[int, ...], frames: int) -> Tensor:
        """(frame, channel) in fp32: the codes' latents continued by silence, or silence alone."""
        if not codes:
            return self._silence[:frames]
        hints = self._codes.latents(torch.tensor(codes, device=self._device))[:frames].float()
        return torch.cat([hints, self._silence[: frames - len(hints)]])

    def _tokens(self, text: str, limit: int, what: str) -> tuple[Tensor, tuple[str, ...]]:
        """Alone, so that nothing is padded; with the special tokens that the tokenizer itself adds."""
        ids = self._tokenizer(text)["input_ids"]
        cut: tuple[str, ...] = ()
        if len(ids) > limit:
            cut = (f"{what}: cut to the {limit} tokens that the model reads, of {len(ids)}",)
            ids = self._tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        return torch.tensor([ids], device=self._device), cut


def instruction_of(request: MusicRequest, plan: SongPlan) -> str:
    """The caller's, else the task's; a song with audio codes is a cover of them."""
    given = (request.instruction or "").strip()
    if given:
        return given
    is_of_codes = request.task_type is Task.TEXT2MUSIC and bool(plan.codes)
    return INSTRUCTIONS[Task.COVER if is_of_codes else request.task_type]


def text_prompt(instruction: str, caption: str, metas: Metas) -> str:
    """The reference's text prompt (`handler.py`); what is not known is N/A."""
    if not instruction.endswith(":"):
        instruction += ":"
    known = {
        "bpm": metas.bpm,
        "timesignature": metas.time_signature,
        "keyscale": metas.key_scale,
        "duration": None if metas.duration is None else f"{int(metas.duration)} seconds",
    }
    lines = "".join(f"- {name}: {'N/A' if value is None else value}\n" for name, value in known.items())
    return f"# Instruction\n{instruction}\n\n# Caption\n{caption}\n\n# Metas\n{lines}<|endoftext|>\n"


def lyric_prompt(language: str, lyrics: str) -> str:
    if lyrics.strip().lower() in ("", "[inst]", "[instrumental]"):
        lyrics = INSTRUMENTAL_LYRICS
    return f"# Languages\n{language}\n\n# Lyric\n{lyrics}<|endoftext|>"


class ConditionEncoder(nn.Module):
    """diffusers' condition encoder, song by song, so that nothing is padded."""

    def __init__(self, encoder: AceStepConditionEncoder, has_timbre_token: bool) -> None:
        super().__init__()
        self._encoder: Any = encoder
        self._has_timbre_token = has_timbre_token

    def timbre(self, reference: Tensor) -> Tensor:
        """(reference, frame, channel) to (reference, width): one token for each piece of reference audio."""
        encoder = self._encoder.timbre_encoder
        if not self._has_timbre_token:
            order = torch.zeros(len(reference), dtype=torch.long, device=reference.device)
            embeddings: Tensor = encoder(reference, order)[0][0]
            return embeddings
        # XL reads the answer at a token of its own in front; diffusers 0.42 reads it at the first frame
        embedded = encoder.embed_tokens(reference)
        prefixed = torch.cat([encoder.special_token.expand(len(reference), -1, -1), embedded], dim=1)
        return run_timbre_layers(encoder, prefixed)[:, 0]

    def pack(self, text: Tensor, lyrics: Tensor, timbre: Tensor) -> Tensor:
        """(1, token, text width) twice and (reference, width) to (token, width): lyrics, timbre, text."""
        mask = torch.ones(lyrics.shape[:2], dtype=torch.long, device=lyrics.device)
        sung = self._encoder.lyric_encoder(inputs_embeds=lyrics, attention_mask=mask)[0]
        return torch.cat([sung, timbre, self._encoder.text_projector(text)[0]])


class AudioCodes(nn.Module):
    """5 Hz codes to 25 Hz latents and back, over diffusers' tokenizer and detokenizer."""

    def __init__(self, tokenizer: AceStepAudioTokenizer, detokenizer: AceStepAudioTokenDetokenizer) -> None:
        super().__init__()
        self._tokenizer: Any = tokenizer
        self._detokenizer: Any = detokenizer

    def latents(self, codes: Tensor) -> Tensor:
        """(code,) to (5 x code, channel)."""
        latents: Tensor = self._detokenizer(self._tokenizer.quantizer.get_output_from_indices(codes[None]))[0]
        return latents

    def codes(self, latents: Tensor, silence: Tensor) -> Tensor:
        """(frame, channel) to (code,), its last group of five completed with the beginning of silence."""
        indices: Tensor = self._tokenizer.tokenize(latents[None], silence[None])[1]
        return indices[0, :, 0]


def run_timbre_layers(encoder: Any, embedded: Tensor) -> Tensor:
    """The layers of diffusers' timbre encoder over (reference, position, width), norm included."""
    positions = embedded.shape[1]
    rotary = _ace_step_rotary_freqs(positions, encoder.head_dim, encoder.rope_theta, embedded.device, embedded.dtype)
    band = _create_4d_mask(
        seq_len=positions,
        dtype=embedded.dtype,
        device=embedded.device,
        sliding_window=encoder.sliding_window,
        is_sliding_window=True,
        is_causal=False,
    )
    for kind, layer in zip(encoder._layer_types, encoder.layers, strict=True):
        mask = band if kind == "sliding_attention" else None
        embedded = layer(hidden_states=embedded, position_embeddings=rotary, attention_mask=mask)
    normed: Tensor = encoder.norm(embedded)
    return normed


def build_condition_encoder(weights: DitWeights) -> ConditionEncoder:
    encoder: Any = _on_meta(AceStepConditionEncoder, weights.config.condition_encoder)
    del encoder.silence_latent, encoder.null_condition_emb  # the engine keeps its own
    load_strictly(encoder, weights.condition_encoder, "condition encoder")
    return freeze(ConditionEncoder(encoder, weights.config.has_timbre_token))


def build_audio_codes(weights: DitWeights) -> AudioCodes:
    tokenizer = AceStepAudioTokenizer(**weights.config.audio_tokenizer)  # not on meta: its FSQ has computed buffers
    detokenizer = _on_meta(AceStepAudioTokenDetokenizer, weights.config.audio_detokenizer)
    load_strictly(tokenizer, weights.audio_tokenizer, "audio tokenizer")
    load_strictly(detokenizer, weights.audio_detokenizer, "audio detokenizer")
    return freeze(AudioCodes(tokenizer, detokenizer))


def _on_meta(kind: type[Any], config: Mapping[str, Any]) -> Any:
    with torch.device("meta"):
        return kind(**config)


def freeze(module: M) -> M:
    """For inference only."""
    return module.eval().requires_grad_(False)
