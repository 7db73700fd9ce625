"""MulT, multimodal transformer (Tsai et al., arXiv 1906.00295): each modality's positions look at the other's.

`crossmodal` is the light baseline of the same idea, which keeps what it shares with the other models; this one has what
the paper and its code have:

Stated                                                          Here
-----------------------------------------------------------     ----------------------------------------------------
temporal convolutions of each modality to one width             `InputProjection`, a convolution of kernel 1 (code)
sinusoidal positions are added                                  `positions`
crossmodal transformer a <- t, t <- a: at each of its layers    `Transformer`, layers of pre-norm attention to the
    the same low-level features of the other modality               embedded other modality
self-attention transformer of each modality                     `Transformer`, which looks at itself
last elements, through fully connected layers                   `LastPooling`, `join`

Code (yaohungt/Multimodal-Transformer): norms before attention and feed-forward network, the latter four times as wide
and with ReLU, inputs times the square root of the width, positions from 1, a last norm, at least three layers of
self-attention, and a residual block before the output. Ours are: two modalities, LN(W x) in place of a mere
convolution, dropout whole dimensions at a time, no mask of later frames of the utterance, the last real position in
place of the last one, and the conversation encoder that all baselines share.
"""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fusion.batch import Batch, Group, Output
from fusion.layers import InputProjection, KeyMask, LastPooling, MultiHeadAttention, SequenceDropout, collect_views
from fusion.models.baselines import BaselineParams, conversation_encoder
from fusion.models.interface import HubModel
from fusion.models.shared import Heads, Sizes


class MulTParams(BaselineParams):
    """Group `model.mult`, and the shared keys that the model takes."""

    heads: Heads = 4
    blocks: int = Field(4, ge=1, le=100)  # layers of cross-modal attention in each direction
    self_blocks: int = Field(3, ge=1, le=100)  # layers of self-attention behind them


def positions(x: Tensor) -> Tensor:
    """Sinusoidal embeddings of positions 1, 2 .., all sines before all cosines: (positions, dim) of x (.., dim)."""
    length, dim = x.shape[1:]
    half = dim // 2
    rates = torch.exp(torch.arange(half, device=x.device) * (-math.log(10_000) / max(half - 1, 1)))
    angles = torch.arange(1, length + 1, device=x.device)[:, None] * rates
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim - 2 * half))


class PreNormLayer(nn.Module):
    """x = x + MHA(LN(x); LN(y)), x = x + W2 relu(W1 LN(x)), with one norm for x and y.

    Shape:
        x: (utterances, positions, dim)
        y: (utterances, others, dim)
        y_mask: of (utterances, others)
        returns: (utterances, positions, dim)
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = MultiHeadAttention(dim, heads)
        self.dropout = SequenceDropout(dropout)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim), SequenceDropout(dropout)
        )

    def forward(self, x: Tensor, y: Tensor, y_mask: KeyMask) -> Tensor:
        x = x + self.dropout(self.attention(self.norm(x), self.norm(y), y_mask))
        return x + self.feed_forward(x)

    def views(self, x: Tensor, y: Tensor, y_mask: KeyMask) -> dict[str, Tensor]:
        return {"attention": self.attention.weights(self.norm(x), self.norm(y), y_mask)}


class Transformer(nn.Module):
    """Layers in which x looks at y, or at itself where there is no y; both embedded first.

    Shape: as `PreNormLayer`
    """

    def __init__(self, dim: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PreNormLayer(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, y: Tensor | None, y_mask: KeyMask) -> Tensor:
        x, y = self._embed(x), None if y is None else self._embed(y)
        for layer in self.layers:
            x = layer(x, x if y is None else y, y_mask)
        return self.norm(x)

    def _embed(self, x: Tensor) -> Tensor:
        return math.sqrt(x.shape[-1]) * x + positions(x)


class MulT(nn.Module, HubModel, paper_url="https://arxiv.org/abs/1906.00295"):
    """Multimodal transformer. `forward` takes a `Batch` and returns an `Output`.

    With `views=True` the output also shows `<one>_to_<other>.layers.<n>.attention` (utterances, heads, positions,
    positions of the other modality), where `audio_to_text` is audio looking at text, and likewise `audio_to_audio`.
    """

    Params = MulTParams

    def __init__(self, params: MulTParams, sizes: Sizes) -> None:
        super().__init__()
        dim, dropout = params.dim, params.dropout

        def transformer(layers: int) -> Transformer:
            return Transformer(dim, params.heads, layers, dropout)

        self.audio_input = InputProjection(*sizes.stored("audio"), dim, dropout)
        self.text_input = InputProjection(*sizes.stored("text"), dim, dropout)
        self.audio_to_text = transformer(params.blocks)
        self.text_to_audio = transformer(params.blocks)
        self.audio_to_audio = transformer(params.self_blocks)
        self.text_to_text = transformer(params.self_blocks)
        self.last = LastPooling()
        self.audio_encoder = conversation_encoder(params)
        self.text_encoder = conversation_encoder(params)
        self.join = nn.Sequential(
            nn.Linear(2 * dim, 2 * dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * dim, 2 * dim)
        )
        self.classifier = nn.Linear(2 * dim, sizes.classes)

    def forward(self, batch: Batch, views: bool = False) -> Output:
        batch = batch.joined() if views else batch
        with collect_views(self, views) as shown:
            a, t = batch.each(self._attend)  # (utterances, dim)
            a, t = self.audio_encoder(a, batch.turns), self.text_encoder(t, batch.turns)
            h = torch.cat([a, t], dim=-1)
            return Output(logits=self.classifier(h + self.join(h)), views=shown)

    def _attend(self, group: Group) -> tuple[Tensor, Tensor]:
        """The last element of audio and text of some utterances: (utterances, dim) twice."""
        audio, text = self.audio_input(group.audio), self.text_input(group.text)
        audio_mask, text_mask = KeyMask(group.audio_mask), KeyMask(group.text_mask)
        a = self.audio_to_text(audio, text, text_mask)  # (utterances, frames, dim)
        t = self.text_to_audio(text, audio, audio_mask)  # (utterances, tokens, dim)
        a = self.audio_to_audio(a, None, audio_mask)
        t = self.text_to_text(t, None, text_mask)
        return self.last(a, audio_mask.real), self.last(t, text_mask.real)
