"""What a fusion model must beat: one modality alone, both side by side, and cross-modal transformers without gates.

`SingleModality`          one modality, pooled to one vector an utterance, a conversation encoder, a classifier
`Concat`                  both of these side by side, into one classifier: late fusion
`CrossModal`              after MulT (Tsai et al., arXiv 1906.00295): in each direction, layers of attention from one
                          modality's positions to the other's, then self-attention; no gate, no relevance, no contrast

They share input projection, pooling, conversation encoder and classifier with the other models, so that a difference
between two rows of a table is that of the fusion. All widths and depths are ours.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fusion.batch import Batch, Group, Output
from fusion.layers import (
    AttentionPooling,
    ConversationEncoder,
    InputProjection,
    KeyMask,
    TransformerLayer,
    Unchanged,
    classifier,
    collect_views,
)
from fusion.models.interface import HubModel
from fusion.models.shared import ConversationEncoding, Heads, SharedParams, Sizes


class BaselineParams(SharedParams):
    """What each baseline takes."""

    conversation_encoder: ConversationEncoding = "gru"  # none: utterances by themselves


class CrossModalParams(BaselineParams):
    """Group `model.crossmodal`, and the shared keys that the model takes."""

    heads: Heads = 4  # of every attention
    blocks: int = Field(2, ge=1, le=100)  # layers of cross-modal attention in each direction
    self_attention: bool = True  # a layer of it behind them


def conversation_encoder(params: BaselineParams) -> nn.Module:
    """What lets turns see each other, (utterances, dim) and `Turns` -> (utterances, dim)."""
    encodes = params.conversation_encoder == "gru"
    return ConversationEncoder(params.dim, params.direction, params.dropout) if encodes else Unchanged()


class Utterances(nn.Module):
    """One vector an utterance from the positions of one modality (`pool`), enriched with other turns (`encoder`)."""

    def __init__(self, params: BaselineParams) -> None:
        super().__init__()
        self.pool = AttentionPooling(params.dim)
        self.encoder = conversation_encoder(params)


class UtteranceVectors(nn.Module):
    """Both modalities of each utterance as one vector: u = LN(W x) pooled, then LN(u + GRU(u)) along the turns.

    Args:
        encodes: whether the conversation encoder of `params` is part of it.

    Shape:
        returns: audio and text, (utterances, dim), before the encoder zeros where the utterance lacks the modality
    """

    def __init__(self, params: BaselineParams, sizes: Sizes, encodes: bool = True) -> None:
        super().__init__()
        params = params if encodes else params.model_copy(update={"conversation_encoder": "none"})
        self.audio_input = InputProjection(*sizes.stored("audio"), params.dim, params.dropout)
        self.text_input = InputProjection(*sizes.stored("text"), params.dim, params.dropout)
        self.audio = Utterances(params)
        self.text = Utterances(params)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        a, t = batch.each(self._pool)
        return self.audio.encoder(a, batch.turns), self.text.encoder(t, batch.turns)

    def _pool(self, group: Group) -> tuple[Tensor, Tensor]:
        audio, text = self.audio_input(group.audio), self.text_input(group.text)
        return self.audio.pool(audio, group.audio_mask), self.text.pool(text, group.text_mask)


class _SingleModality(nn.Module, HubModel):
    """One modality alone. `forward` takes a `Batch`, ignores its other modality, and returns an `Output`."""

    Params = BaselineParams
    modality: Literal["audio", "text"]

    def __init__(self, params: BaselineParams, sizes: Sizes) -> None:
        super().__init__()
        self.input = InputProjection(*sizes.stored(self.modality), params.dim, params.dropout)
        self.utterances = Utterances(params)
        self.classifier = classifier(params.dim, params.dim, sizes.classes, params.dropout)

    def forward(self, batch: Batch, views: bool = False) -> Output:
        batch = batch.joined() if views else batch
        with collect_views(self, views) as shown:
            x = batch.each(self._pool)  # (utterances, dim)
            x = self.utterances.encoder(x, batch.turns)
            return Output(logits=self.classifier(x), views=shown)

    def _pool(self, group: Group) -> Tensor:
        x, mask = group.modality(self.modality)  # (utterances, positions, features)
        return self.utterances.pool(self.input(x), mask)


class AudioAlone(_SingleModality):
    """Audio alone."""

    modality = "audio"
    inputs = ("audio",)


class TextAlone(_SingleModality):
    """Text alone."""

    modality = "text"
    inputs = ("text",)


class Concat(nn.Module, HubModel):
    """Late fusion: both modalities side by side."""

    Params = BaselineParams

    def __init__(self, params: BaselineParams, sizes: Sizes) -> None:
        super().__init__()
        self.vectors = UtteranceVectors(params, sizes)
        self.classifier = classifier(2 * params.dim, params.dim, sizes.classes, params.dropout)

    def forward(self, batch: Batch, views: bool = False) -> Output:
        batch = batch.joined() if views else batch
        with collect_views(self, views) as shown:
            return Output(logits=self.classifier(torch.cat(self.vectors(batch), dim=-1)), views=shown)


class CrossModal(nn.Module, HubModel):
    """Directional cross-modal transformers between the positions of both modalities."""

    Params = CrossModalParams

    def __init__(self, params: CrossModalParams, sizes: Sizes) -> None:
        super().__init__()
        dim, dropout = params.dim, params.dropout

        def layer(wanted: bool = True) -> nn.Module:
            return TransformerLayer(dim, params.heads, dropout) if wanted else Unchanged()

        self.audio_input = InputProjection(sizes.audio_dim, sizes.audio_layers, dim, dropout)
        self.text_input = InputProjection(sizes.text_dim, sizes.text_layers, dim, dropout)
        self.audio_to_text = nn.ModuleList(layer() for _ in range(params.blocks))
        self.text_to_audio = nn.ModuleList(layer() for _ in range(params.blocks))
        self.audio_to_audio = layer(params.self_attention)
        self.text_to_text = layer(params.self_attention)
        self.audio_utterances = Utterances(params)
        self.text_utterances = Utterances(params)
        self.classifier = classifier(2 * dim, dim, sizes.classes, dropout)

    def forward(self, batch: Batch, views: bool = False) -> Output:
        batch = batch.joined() if views else batch
        with collect_views(self, views) as shown:
            a, t = batch.each(self._attend)  # (utterances, dim)
            a = self.audio_utterances.encoder(a, batch.turns)
            t = self.text_utterances.encoder(t, batch.turns)
            return Output(logits=self.classifier(torch.cat([a, t], dim=-1)), views=shown)

    def _attend(self, group: Group) -> tuple[Tensor, Tensor]:
        """Audio and text of some utterances, each enriched with the other and pooled: (utterances, dim) twice."""
        audio = a = self.audio_input(group.audio)  # (utterances, frames, dim)
        text = t = self.text_input(group.text)  # (utterances, tokens, dim)
        audio_mask, text_mask = KeyMask(group.audio_mask), KeyMask(group.text_mask)
        for layer in self.audio_to_text:
            a = layer(a, text, text_mask)
        for layer in self.text_to_audio:
            t = layer(t, audio, audio_mask)
        a = self.audio_to_audio(a, a, audio_mask)
        t = self.text_to_text(t, t, text_mask)
        return self.audio_utterances.pool(a, audio_mask.real), self.text_utterances.pool(t, text_mask.real)
