"""HBAF, heterogeneous bimodal attention fusion (arXiv 2503.06405): audio and text meet on two levels.

The paper's body was not at hand: its abstract and public notes name the parts, and how they are built is our reading.

Stated                                                          Here
-----------------------------------------------------------     ----------------------------------------------------
uni-modal representation of low-level audio, high-level text    `InputProjection` of each
an audio context network brings contextual content into the     `AudioContext`, fed by `TokenContent` and
    audio, to bridge the gap between the two                        `ConversationContent`
multi-level fusion                                              `Level` raw and `Level` context, their learned mix
dynamic bimodal attention to intra- and inter-modal             `BimodalAttention`, one for each level and direction;
    interactions, with dynamic gating that filters incorrect        its gate and its relevance
    cross-modal relations
inter-modal contrastive learning of absolute and relative       `Embedding` of each; the losses are in
`fusion.objective.losses`
    interactions

Our choices:

- What the conversation says is read from its text: summaries pool an utterance's tokens.
- Levels have parameters of their own, and are mixed position by position, by one pair of weights for each modality.
- The conversation encoder adds what it finds to each utterance, a = LN(a + GRU(a)), one for each modality.
- The auxiliary heads and the embeddings take the same two vectors as the classifier.
- An utterance without a modality pools to zeros there, and attention to nothing gives zeros.

And what each switch leaves:

- `context: text | conversation` keeps one source of content. `none` leaves the audio of the context level as it is,
  with as many levels as before, so that a row of an ablation table tells what the content brings.
- `levels: raw | context` has one level, thus nothing to mix; with `raw` there is no audio context network.
- `self_attention: false` leaves Z = LN(X + r K), `cross_attention: false` Z = LN(X + S), both without the gate, which
  has nothing to choose between. With both switched off nothing would be left, which is refused.
- `gate: false` weighs both relations by one half. The gate inside the audio context network stays.
- `relevance: false` takes every cross-modal relation for true, r = 1.
- `residual: false` leaves out X in the sum, Z = LN(g S + (1 - g) r K). The sum around the feed-forward network stays.
- `direction: past` lets no later turn influence an earlier one, anywhere in the model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fusion.batch import Batch, Group, Output
from fusion.layers import (
    AttentionPooling,
    Constant,
    ConversationEncoder,
    ConversationEncoding,
    Direction,
    Embedding,
    Gate,
    InputProjection,
    KeyMask,
    MultiHeadAttention,
    SequenceDropout,
    TurnGRU,
    Unchanged,
    WeightedMix,
    classifier,
    collect_views,
    feed_forward,
    gather_neighbours,
    zero_padding,
)
from fusion.models.interface import HubModel, Stage, check_choices, check_width, whole
from pipeline.settings import SettingsError

Context = Literal["none", "text", "conversation", "both"]
Levels = Literal["both", "raw", "context"]
Keys = tuple[Tensor, Tensor]  # (utterances, keys, dim) and their mask (utterances, keys)
CHOICES = {"context": Context, "direction": Direction, "levels": Levels, "conversation_encoder": ConversationEncoding}


class TokenContent(nn.Module):
    """What an utterance says itself: its tokens.

    Shape:
        text: (utterances, tokens, dim)
        text_mask: (utterances, tokens)
        around: not looked at
        returns: keys (utterances, tokens, dim) and their mask (utterances, tokens)
    """

    def forward(self, text: Tensor, text_mask: Tensor, around: Keys | None) -> Keys:
        return text, text_mask


class ConversationContent(nn.Module):
    """What is said around an utterance: summaries of the nearest turns, passed along the conversation by a GRU.

    `look_around` finds it for all utterances of a batch at once, `forward` takes it for some of them.

    Shape:
        text: (utterances, tokens, dim)
        text_mask: (utterances, tokens)
        around: keys (utterances, neighbours, dim) and their mask (utterances, neighbours)
        returns: these
    """

    offsets: Tensor

    def __init__(self, dim: int, turns: int, direction: Direction) -> None:
        super().__init__()
        offsets = [*range(-turns, 0), *(range(1, turns + 1) if direction == "both" else ())]
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)
        self.pool = AttentionPooling(dim)
        self.pass_along = TurnGRU(dim, direction)

    def forward(self, text: Tensor, text_mask: Tensor, around: Keys | None) -> Keys:
        assert around is not None
        return around

    def look_around(self, inputs: Sequence["Inputs"], batch: Batch) -> Keys:
        """Keys (utterances, neighbours, dim) and their mask (utterances, neighbours), of all groups of `batch`."""
        pooled = batch.gather([self.pool(one.text, one.text_mask.real) for one in inputs])
        return gather_neighbours(self.pass_along(pooled, batch.turns), batch.turns, self.offsets)


class AudioContext(nn.Module):
    """The audio context network: Q = MHA(Ha; content), g = sigmoid(W [Ha; Q]), Hc = LN(Ha + g * Q).

    Shape:
        audio: (utterances, frames, dim)
        text: (utterances, tokens, dim)
        masks: (utterances, frames) for `views` alone, (utterances, tokens)
        around: keys (utterances, neighbours, dim) and their mask (utterances, neighbours)
        returns: (utterances, frames, dim)
    """

    def __init__(self, sources: dict[str, nn.Module], dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.sources = nn.ModuleDict(sources)
        self.attention = MultiHeadAttention(dim, heads)
        self.gate = Gate(dim, width=dim)
        self.dropout = SequenceDropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, audio: Tensor, text: Tensor, audio_mask: Tensor, text_mask: Tensor, around: Keys | None
    ) -> Tensor:
        keys, key_mask = self._content(text, text_mask, around)
        content = self.attention(audio, keys, key_mask)
        gate = self.gate(audio, content)
        return self.norm(audio + self.dropout(gate * content))

    def views(
        self, audio: Tensor, text: Tensor, audio_mask: Tensor, text_mask: Tensor, around: Keys | None
    ) -> dict[str, Tensor]:
        keys, key_mask = self._content(text, text_mask, around)
        gate = self.gate(audio, self.attention(audio, keys, key_mask))
        weights = self.attention.weights(audio, keys, key_mask)
        return {"gate": gate * audio_mask[:, :, None], "attention": weights * audio_mask[:, None, :, None]}

    def look_around(self, inputs: Sequence["Inputs"], batch: Batch) -> Keys | None:
        """What the conversation says around each utterance of the batch, if that is asked for."""
        if "conversation" not in self.sources:
            return None
        source: Any = self.sources["conversation"]
        return source.look_around(inputs, batch)

    def _content(self, text: Tensor, text_mask: Tensor, around: Keys | None) -> Keys:
        keys, masks = zip(*(source(text, text_mask, around) for source in self.sources.values()), strict=True)
        return torch.cat(keys, dim=1), torch.cat(masks, dim=1)


class NoContext(Unchanged):
    """Takes the place of the audio context network."""

    def look_around(self, inputs: Sequence["Inputs"], batch: Batch) -> None:
        return None


class BimodalAttention(nn.Module):
    """Dynamic bimodal attention: one modality x, told by itself and by the other modality y.

        S = MHA(x; x)    K = MHA(x; y)    r = sigmoid(w [x; K])    g = sigmoid(W [S; K])
        z = LN(x + g * S + (1 - g) * r * K)
        z = LN(z + FFN(z))

    Shape:
        x: (utterances, positions, dim)
        y: (utterances, others, dim)
        x_mask: of (utterances, positions)
        y_mask: of (utterances, others)
        returns: (utterances, positions, dim)
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float,
        *,
        self_attention: bool,
        cross_attention: bool,
        gate: bool,
        relevance: bool,
        residual: bool,
    ) -> None:
        super().__init__()
        self.intra = MultiHeadAttention(dim, heads) if self_attention else Constant(0.0)
        self.inter = MultiHeadAttention(dim, heads) if cross_attention else Constant(0.0)
        self.relevance = Gate(dim, width=1) if cross_attention and relevance else Constant(1.0)
        if self_attention and cross_attention:
            self.gate = Gate(dim, width=dim) if gate else Constant(0.5)
        else:
            self.gate = Constant(1.0 if self_attention else 0.0)
        self.residual = Unchanged() if residual else Constant(0.0)
        self.dropout = SequenceDropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.feed_forward = feed_forward(dim, dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, y: Tensor, x_mask: KeyMask, y_mask: KeyMask) -> Tensor:
        own, other, relevance, gate = self._relate(x, y, x_mask, y_mask)
        z = self.norm(self.residual(x) + self.dropout(gate * own + (1 - gate) * relevance * other))
        return self.feed_forward_norm(z + self.feed_forward(z))

    def views(self, x: Tensor, y: Tensor, x_mask: KeyMask, y_mask: KeyMask) -> dict[str, Tensor]:
        _, _, relevance, gate = self._relate(x, y, x_mask, y_mask)
        maps = {"intra": self.intra.weights(x, x, x_mask), "inter": self.inter.weights(x, y, y_mask)}
        decisions = {"relevance": relevance, "gate": gate}
        return zero_padding(decisions, x_mask.real[:, :, None]) | zero_padding(maps, x_mask.real[:, None, :, None])

    def _relate(self, x: Tensor, y: Tensor, x_mask: KeyMask, y_mask: KeyMask) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own = self.intra(x, x, x_mask)
        other = self.inter(x, y, y_mask)
        return own, other, self.relevance(x, other), self.gate(own, other)


class Level(nn.Module):
    """One level of fusion: both directions of bimodal attention, between audio as `augment` leaves it and text.

    Shape:
        inputs: of one group
        around: what `augment.look_around` finds, of the utterances of that group
        returns: audio (utterances, frames, dim) and text (utterances, tokens, dim)
    """

    def __init__(self, augment: AudioContext | NoContext, audio: BimodalAttention, text: BimodalAttention) -> None:
        super().__init__()
        self.augment: Any = augment
        self.audio = audio
        self.text = text

    def forward(self, inputs: "Inputs", around: Keys | None) -> tuple[Tensor, Tensor]:
        audio_mask, text, text_mask = inputs.audio_mask, inputs.text, inputs.text_mask
        audio = self.augment(inputs.audio, text, audio_mask.real, text_mask.real, around)
        return self.audio(audio, text, audio_mask, text_mask), self.text(text, audio, text_mask, audio_mask)


@dataclass(frozen=True, eq=False)
class Inputs:
    """A group of utterances as fusion sees them.

    Shape:
        audio: (utterances, frames, dim)
        audio_mask: of (utterances, frames)
        text: (utterances, tokens, dim)
        text_mask: of (utterances, tokens)
    """

    audio: Tensor
    audio_mask: KeyMask
    text: Tensor
    text_mask: KeyMask


class HBAF(nn.Module, HubModel, library_name="erc-fusion", paper_url="https://arxiv.org/abs/2503.06405"):
    """Heterogeneous bimodal attention fusion. `forward` takes a `Batch` and returns an `Output`.

    With `views=True` the output also shows, under the names of the parts and where these exist, zero at padding:

        levels.<level>.<modality>.gate         (utterances, positions, dim)     g: 1 takes S alone, 0 takes r K alone
        levels.<level>.<modality>.relevance    (utterances, positions, 1)       r: 0 closes the cross-modal relation
        levels.<level>.<modality>.intra        (utterances, heads, positions, positions)
        levels.<level>.<modality>.inter        (utterances, heads, positions, positions of the other modality)
        levels.context.augment.gate            (utterances, frames, dim)
        levels.context.augment.attention       (utterances, heads, frames, tokens + neighbouring turns)
        levels.context.augment.sources.conversation.pool.weights    (utterances, tokens)
        <modality>_input.mix.weights           (layers,)
        <modality>_mix.weights                 (levels,)
        <modality>_pool.weights                (utterances, positions)

    where <level> is raw or context, <modality> is audio or text, and positions are its frames or tokens.

    Args:
        audio_dim, text_dim: width of the stored features.
        audio_layers, text_layers: stored layers; more than one are mixed by learned weights.
        classes: how many labels there are; 1 for a score.
        dim: width of everything inside; a multiple of `heads`, and of 2 for `direction` both.
        heads: of every attention.
        dropout: share dropped of the inputs, of what each part adds to its input, and in the classifier.
        context: where the audio context network looks.
        context_turns: how many turns it sees on each side.
        direction: `past` for turns that have been, `both` for the whole conversation.
        levels, self_attention, cross_attention, gate, relevance, residual, conversation_encoder: see the module.
        auxiliary: whether each modality has a classifier of its own.
        contrastive: whether there are embeddings for the contrastive losses.

    Raises:
        SettingsError: the arguments do not fit each other.
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
        context: Context = "both",
        context_turns: int = 4,
        direction: Direction = "both",
        levels: Levels = "both",
        self_attention: bool = True,
        cross_attention: bool = True,
        gate: bool = True,
        relevance: bool = True,
        residual: bool = True,
        conversation_encoder: ConversationEncoding = "gru",
        auxiliary: bool = True,
        contrastive: bool = True,
    ) -> None:
        super().__init__()
        check_choices(
            CHOICES, context=context, direction=direction, levels=levels, conversation_encoder=conversation_encoder
        )
        check_width(dim, heads, halves=direction == "both")
        _check(context_turns, self_attention, cross_attention)
        augment: dict[str, Callable[[], AudioContext | NoContext]] = {
            "raw": NoContext,
            "context": partial(_audio_context, context, context_turns, direction, dim, heads, dropout),
        }
        attend = partial(
            BimodalAttention,
            dim,
            heads,
            dropout,
            self_attention=self_attention,
            cross_attention=cross_attention,
            gate=gate,
            relevance=relevance,
            residual=residual,
        )
        names = ["raw", "context"] if levels == "both" else [levels]

        self.audio_input = InputProjection(audio_dim, audio_layers, dim, dropout)
        self.text_input = InputProjection(text_dim, text_layers, dim, dropout)
        self.levels: Any = nn.ModuleDict({name: Level(augment[name](), attend(), attend()) for name in names})
        self.audio_mix = WeightedMix(len(names)) if len(names) > 1 else Unchanged()
        self.text_mix = WeightedMix(len(names)) if len(names) > 1 else Unchanged()
        self.audio_pool = AttentionPooling(dim)
        self.text_pool = AttentionPooling(dim)
        encodes = conversation_encoder == "gru"
        self.audio_encoder = ConversationEncoder(dim, direction, dropout) if encodes else Unchanged()
        self.text_encoder = ConversationEncoder(dim, direction, dropout) if encodes else Unchanged()
        self.classifier = classifier(3 * dim, dim, classes, dropout)
        self.audio_head = nn.Linear(dim, classes) if auxiliary else Constant(None)
        self.text_head = nn.Linear(dim, classes) if auxiliary else Constant(None)
        self.audio_embedding = Embedding(dim) if contrastive else Constant(None)
        self.text_embedding = Embedding(dim) if contrastive else Constant(None)

    def stages(self) -> list[Stage]:
        """Trained in one piece."""
        return [whole(self)]

    def forward(self, batch: Batch, views: bool = False) -> Output:
        with collect_views(self, views) as shown:
            return replace(self._fuse(batch.joined() if views else batch), views=shown)

    def _fuse(self, batch: Batch) -> Output:
        inputs = [self._project(group) for group in batch.groups]
        arounds = [level.augment.look_around(inputs, batch) for level in self.levels.values()]
        pooled = [
            self._pool(one, [_of_group(around, group, batch) for around in arounds])
            for one, group in zip(inputs, batch.groups, strict=True)
        ]
        a, t = (batch.gather(rows) for rows in zip(*pooled, strict=True))
        a = self.audio_encoder(a, batch.turns)
        t = self.text_encoder(t, batch.turns)
        return Output(
            logits=self.classifier(torch.cat([a, t, a * t], dim=-1)),
            audio_logits=self.audio_head(a),
            text_logits=self.text_head(t),
            audio=self.audio_embedding(a),
            text=self.text_embedding(t),
        )

    def _project(self, group: Group) -> Inputs:
        audio, text = self.audio_input(group.audio), self.text_input(group.text)
        return Inputs(audio, KeyMask(group.audio_mask), text, KeyMask(group.text_mask))

    def _pool(self, inputs: Inputs, arounds: Sequence[Keys | None]) -> tuple[Tensor, Tensor]:
        """The utterances of one group, each modality told by the other: (utterances, dim) twice."""
        levels = [level(inputs, around) for level, around in zip(self.levels.values(), arounds, strict=True)]
        audios, texts = zip(*levels, strict=True)
        audio = self.audio_pool(self.audio_mix(*audios), inputs.audio_mask.real)
        return audio, self.text_pool(self.text_mix(*texts), inputs.text_mask.real)


def _of_group(around: Keys | None, group: Group, batch: Batch) -> Keys | None:
    if around is None:
        return None
    keys, exist = around
    return batch.of_group(group, keys), batch.of_group(group, exist)


def _audio_context(
    context: Context, turns: int, direction: Direction, dim: int, heads: int, dropout: float
) -> AudioContext | NoContext:
    sources: dict[str, nn.Module] = {}
    if context in ("text", "both"):
        sources["text"] = TokenContent()
    if context in ("conversation", "both"):
        sources["conversation"] = ConversationContent(dim, turns, direction)
    return AudioContext(sources, dim, heads, dropout) if sources else NoContext()


def _check(turns: int, self_attention: bool, cross_attention: bool) -> None:
    if turns < 1:
        raise SettingsError(f"model.context_turns is {turns}: expected at least 1; for none, set model.context to text")
    if not (self_attention or cross_attention):
        raise SettingsError(
            "model.self_attention and model.cross_attention are both false: nothing is left to fuse; switch one on"
        )
