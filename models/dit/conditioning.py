"""What a song is made from, as the DiT takes it: the states of its words and its timbre, and its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.dit.context import Canvas, Frames, canvas_of, canvas_of_codes, chunk_mask, context_of
from models.dit.encoders import build_audio_codes, build_condition_encoder
from models.dit.prompts import INSTRUCTIONS, instruction_of, lyric_prompt, text_prompt
from models.dit.stepping import Condition, Conditions
from models.editing import window_of
from models.errors import TooLong
from models.music import FRAMES_PER_SECOND, Song, Source, Task
from models.weights import DitWeights, read_text_encoder

TEXT_TOKENS = 256
LYRIC_TOKENS = 2048


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
        self._timbre_frames = weights.config.timbre_frames
        self._silent_timbre = self._timbre_of(self._silence)

    def conditions_of(self, song: Song) -> Conditions:
        """Raises TooLong where the song outlasts the checkpoint's silence latent."""
        request, silence = song.request, self._silence_of(song)
        window = (0, song.frames)
        if song.source is not None:
            window = window_of(request).on(song.source.samples).frames(song.frames)
        canvas = self._canvas_of(song, window, silence)
        mask = chunk_mask(song.frames, window, request.chunk_mask_mode)
        tokens, remarks = self._tokens_of(song, instruction_of(request, song.plan))
        first, then = Condition(tokens, context_of(canvas.source, mask)), None
        if request.audio_cover_strength < 1.0 and canvas.source is not silence:
            tokens, _ = self._tokens_of(song, INSTRUCTIONS[Task.TEXT2MUSIC])
            then = Condition(tokens, context_of(silence, mask))
        elif request.audio_cover_strength < 1.0:
            remarks += ("audio_cover_strength: not applied, the song has no source or audio codes to let go of",)
        return Conditions(first, then, canvas.start, canvas.kept, remarks)

    def codes_of(self, source: Source) -> tuple[int, ...]:
        """What a source is heard as, five codes a second, a started one counted."""
        latents = self._latents(source.values).to(self._dtype)
        return tuple(self._codes.codes(latents, self._silence.to(self._dtype)).tolist())

    def _silence_of(self, song: Song) -> Tensor:
        """(frame, channel) fp32, as long as the song."""
        if song.frames > len(self._silence):
            seconds, most = song.frames / FRAMES_PER_SECOND, len(self._silence) / FRAMES_PER_SECOND
            raise TooLong(f"a song of {seconds:g} s asked; this checkpoint makes at most {most:g} s")
        return self._silence[: song.frames]

    def _canvas_of(self, song: Song, window: Frames, silence: Tensor) -> Canvas:
        if song.plan.codes:
            hints = self._codes.latents(torch.tensor(song.plan.codes, device=self._device))
            return canvas_of_codes(hints.float(), silence)
        if song.source is None:
            return Canvas(silence)
        return canvas_of(song.request.task_type, self._latents(song.source.values), window, silence, self._codes)

    def _tokens_of(self, song: Song, instruction: str) -> tuple[Tensor, tuple[str, ...]]:
        """(token, width) of what is said of a song and what it is to sound like, and what of it had to be cut."""
        plan, metas = song.plan, song.plan.metas
        if song.source is not None:
            metas = metas.model_copy(update={"duration": song.frames / FRAMES_PER_SECOND})
        text, text_cut = self._ids(text_prompt(instruction, plan.caption, metas), TEXT_TOKENS, "caption and metadata")
        lyrics, lyric_cut = self._ids(lyric_prompt(plan.language, plan.lyrics), LYRIC_TOKENS, "lyrics")
        text_states = self._text_model(input_ids=text).last_hidden_state
        lyric_states = self._text_model.get_input_embeddings()(lyrics)
        timbre = self._silent_timbre
        if song.reference is not None:
            timbre = self._timbre_of(self._latents(song.reference.values))
        return self._encoder.pack(text_states, lyric_states, timbre), text_cut + lyric_cut

    def _timbre_of(self, latents: Tensor) -> Tensor:
        return self._encoder.timbre(latents[None, : self._timbre_frames].to(self._dtype))

    def _latents(self, values: NDArray[np.float32]) -> Tensor:
        return torch.tensor(values, device=self._device)

    def _ids(self, text: str, limit: int, what: str) -> tuple[Tensor, tuple[str, ...]]:
        """Alone, so that nothing is padded; with the special tokens that the tokenizer itself adds."""
        ids = self._tokenizer(text)["input_ids"]
        cut: tuple[str, ...] = ()
        if len(ids) > limit:
            cut = (f"{what}: cut to the {limit} tokens that the model reads, of {len(ids)}",)
            ids = self._tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        return torch.tensor([ids], device=self._device), cut
