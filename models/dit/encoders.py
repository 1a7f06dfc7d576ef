"""The networks beside the DiT, song by song, over diffusers' modules: condition encoder, audio tokenizer and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from diffusers.models.transformers.ace_step_transformer import _ace_step_rotary_freqs, _create_4d_mask
from diffusers.pipelines.ace_step.modeling_ace_step import (
    AceStepAudioTokenDetokenizer,
    AceStepAudioTokenizer,
    AceStepConditionEncoder,
)
from torch import Tensor, nn

from models.weights import DitWeights, load_strictly

M = TypeVar("M", bound=nn.Module)


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

    def heard_again(self, latents: Tensor, silence: Tensor) -> Tensor:
        """(frame, channel) fp32, twice: what is left of latents once they were codes."""
        dtype = self._detokenizer.proj_out.weight.dtype
        return self.latents(self.codes(latents.to(dtype), silence.to(dtype)))[: len(latents)].float()

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
