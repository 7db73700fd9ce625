"""What a fusion model must beat: one modality alone, both side by side, and cross-modal transformers without gates.

`SingleModality`          one modality, pooled to one vector an utterance, a conversation encoder, a classifier
`Concat`                  both of these side by side, into one classifier: late fusion
`CrossModal`              after MulT (Tsai et al., arXiv 1906.00295): in each direction, layers of attention from one
                          modality's positions to the other's, then self-attention; no gate, no relevance, no contrast

They share input projection, pooling, conversation encoder and classifier with the other models, so that a difference
between two rows of a table is that of the fusion. All widths and depths are ours.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from fusion.batch import Batch, Group, Output
from fusion.layers import (
    AttentionPooling,
    ConversationEncoder,
    ConversationEncoding,
    Direction,
    InputProjection,
    KeyMask,
    MultiHeadAttention,
    SequenceDropout,
    Unchanged,
    classifier,
    collect_views,
    feed_forward,
)
from fusion.models.interface import HubModel, Stage, check_choices, check_width, whole
from pipeline.settings import SettingsError

CHOICES = {"direction": Direction, "conversation_encoder": ConversationEncoding}


class Utterances(nn.Module):
    """The positions of one modality to one vector an utterance, which the conversation encoder tells of the others.

    Shape:
        xs: (utterances, positions, dim) of each group of the batch
        returns: (utterances, dim)
    """

    def __init__(self, dim: int, direction: Direction, encoding: ConversationEncoding, dropout: float) -> None:
        super().__init__()
        self.pool = AttentionPooling(dim)
        self.encoder = ConversationEncoder(dim, direction, dropout) if encoding == "gru" else Unchanged()

    def forward(self, xs: Sequence[Tensor], batch: Batch, modality: str) -> Tensor:
        masks = [group.modality(modality)[1] for group in batch.groups]
        pooled = batch.gather([self.pool(x, mask) for x, mask in zip(xs, masks, strict=True)])
        return self.encoder(pooled, batch.turns)


class TransformerLayer(nn.Module):
    """x = LN(x + MHA(x; y)), x = LN(x + FFN(x)).

    Shape:
        x: (utterances, positions, dim)
        y: (utterances, others, dim)
        y_mask: of (utterances, others)
        returns: (utterances, positions, dim)
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads)
        self.dropout = SequenceDropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.feed_forward = feed_forward(dim, dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, y: Tensor, y_mask: KeyMask) -> Tensor:
        x = self.norm(x + self.dropout(self.attention(x, y, y_mask)))
        return self.feed_forward_norm(x + self.feed_forward(x))

    def views(self, x: Tensor, y: Tensor, y_mask: KeyMask) -> dict[str, Tensor]:
        return {"attention": self.attention.weights(x, y, y_mask)}


class SingleModality(nn.Module, HubModel, library_name="erc-fusion"):
    """One modality alone. `forward` takes a `Batch`, whose other modality it does not look at, and returns an `Output`.

    Args:
        modality: which one.
        audio_dim, text_dim: width of the stored features.
        audio_layers, text_layers: stored layers; more than one are mixed by learned weights.
        classes: how many labels there are; 1 for a score.
        dim: width of everything inside; even for `direction` both.
        dropout: share dropped of the inputs, of what the conversation encoder adds, and in the classifier.
        direction: `past` for turns that have been, `both` for the whole conversation.
        conversation_encoder: gru, or none for utterances by themselves.

    Raises:
        SettingsError: the arguments do not fit each other.
    """

    def __init__(
        self,
        *,
        modality: Literal["audio", "text"],
        audio_dim: int,
        text_dim: int,
        audio_layers: int = 1,
        text_layers: int = 1,
        classes: int,
        dim: int = 64,
        dropout: float = 0.3,
        direction: Direction = "both",
        conversation_encoder: ConversationEncoding = "gru",
    ) -> None:
        super().__init__()
        _check(dim, 1, direction, conversation_encoder)
        self.modality = modality
        features, layers = {"audio": (audio_dim, audio_layers), "text": (text_dim, text_layers)}[modality]
        self.input = InputProjection(features, layers, dim, dropout)
        self.utterances = Utterances(dim, direction, conversation_encoder, dropout)
        self.classifier = classifier(dim, dim, classes, dropout)

    def stages(self) -> list[Stage]:
        """Trained in one piece."""
        return [whole(self)]

    def forward(self, batch: Batch, views: bool = False) -> Output:
        batch = batch.joined() if views else batch
        with collect_views(self, views) as shown:
            inputs = [self.input(group.modality(self.modality)[0]) for group in batch.groups]
            x = self.utterances(inputs, batch, self.modality)  # (utterances, dim)
            return Output(logits=self.classifier(x), views=shown)


class Concat(nn.Module, HubModel, library_name="erc-fusion"):
    """Late fusion: both modalities side by side; arguments as of `SingleModality`."""

    def __init__(
        self,
        *,
        audio_dim: int,
        text_dim: int,
        audio_layers: int = 1,
        text_layers: int = 1,
        classes: int,
        dim: int = 64,
        dropout: float = 0.3,
        direction: Direction = "both",
        conversation_encoder: ConversationEncoding = "gru",
    ) -> None:
        super().__init__()
        _check(dim, 1, direction, conversation_encoder)
        self.audio_input = InputProjection(audio_dim, audio_layers, dim, dropout)
        self.text_input = InputProjection(text_dim, text_layers, dim, dropout)
        self.audio_utterances = Utterances(dim, direction, conversation_encoder, dropout)
        self.text_utterances = Utterances(dim, direction, conversation_encoder, dropout)
        self.classifier = classifier(2 * dim, dim, classes, dropout)

    def stages(self) -> list[Stage]:
        """Trained in one piece."""
        return [whole(self)]

    def forward(self, batch: Batch, views: bool = False) -> Output:
        batch = batch.joined() if views else batch
        with collect_views(self, views) as shown:
            audio = self.audio_utterances([self.audio_input(group.audio) for group in batch.groups], batch, "audio")
            text = self.text_utterances([self.text_input(group.text) for group in batch.groups], batch, "text")
            return Output(logits=self.classifier(torch.cat([audio, text], dim=-1)), views=shown)


class CrossModal(nn.Module, HubModel, library_name="erc-fusion"):
    """Directional cross-modal transformers; arguments as of `SingleModality`, and

    Args:
        heads: of every attention; divides `dim`.
        blocks: layers of cross-modal attention in each direction; one of self-attention follows.
        self_attention: whether it does.
    """

    def __init__(
        self,
        *,
        audio_dim: int,
        text_dim: int,
        audio_layers: int = 1,
        text_layers: int = 1,
        classes: int,
        dim: int = 64,
        heads: int = 4,
        dropout: float = 0.3,
        direction: Direction = "both",
        conversation_encoder: ConversationEncoding = "gru",
        blocks: int = 2,
        self_attention: bool = True,
    ) -> None:
        super().__init__()
        _check(dim, heads, direction, conversation_encoder)
        if blocks < 1:
            raise SettingsError(
                f"model.blocks is {blocks}: crossmodal needs at least 1; for none, set model.name to concat"
            )
        self.audio_input = InputProjection(audio_dim, audio_layers, dim, dropout)
        self.text_input = InputProjection(text_dim, text_layers, dim, dropout)
        self.audio_to_text = nn.ModuleList(TransformerLayer(dim, heads, dropout) for _ in range(blocks))
        self.text_to_audio = nn.ModuleList(TransformerLayer(dim, heads, dropout) for _ in range(blocks))
        self.audio_to_audio = TransformerLayer(dim, heads, dropout) if self_attention else Unchanged()
        self.text_to_text = TransformerLayer(dim, heads, dropout) if self_attention else Unchanged()
        self.audio_utterances = Utterances(dim, direction, conversation_encoder, dropout)
        self.text_utterances = Utterances(dim, direction, conversation_encoder, dropout)
        self.classifier = classifier(2 * dim, dim, classes, dropout)

    def stages(self) -> list[Stage]:
        """Trained in one piece."""
        return [whole(self)]

    def forward(self, batch: Batch, views: bool = False) -> Output:
        with collect_views(self, views) as shown:
            return replace(self._fuse(batch.joined() if views else batch), views=shown)

    def _fuse(self, batch: Batch) -> Output:
        audios, texts = zip(*(self._attend(group) for group in batch.groups), strict=True)
        a = self.audio_utterances(audios, batch, "audio")  # (utterances, dim)
        t = self.text_utterances(texts, batch, "text")
        return Output(logits=self.classifier(torch.cat([a, t], dim=-1)))

    def _attend(self, group: Group) -> tuple[Tensor, Tensor]:
        """Audio (n, frames, dim) and text (n, tokens, dim), each told by the other."""
        audio = a = self.audio_input(group.audio)
        text = t = self.text_input(group.text)
        audio_mask, text_mask = KeyMask(group.audio_mask), KeyMask(group.text_mask)
        for layer in self.audio_to_text:
            a = layer(a, text, text_mask)
        for layer in self.text_to_audio:
            t = layer(t, audio, audio_mask)
        return self.audio_to_audio(a, a, audio_mask), self.text_to_text(t, t, text_mask)


def _check(dim: int, heads: int, direction: Direction, conversation_encoder: ConversationEncoding) -> None:
    check_choices(CHOICES, direction=direction, conversation_encoder=conversation_encoder)
    check_width(dim, heads, halves=direction == "both")
