"""HBAF, heterogeneous bimodal attention fusion (arXiv 2503.06405): audio and text meet on two levels.

The paper's body was not available: its abstract and public notes name the parts (stated). A little more is known of the
sister paper of its authors, BCAF (arXiv 2503.05858; sister). How the parts are built is our reading (ours).

Stated                                                          Here
-----------------------------------------------------------     ----------------------------------------------------
uni-modal representation of low-level audio, high-level text    `InputProjection` of each
an audio context network brings contextual content into the     `AudioContext`, which looks at the content of `Tokens`
    audio, to bridge the gap between the two                        and `Neighbours`
multi-level fusion                                              `Level` raw and `Level` context, their learned mix
dynamic bimodal attention to intra- and inter-modal             `BimodalAttention`, one for each level and direction;
    interactions, with dynamic gating that filters incorrect        its gate and its relevance
    cross-modal relations
inter-modal contrastive learning of absolute and relative       `Embedding` of each; the losses are in
    interactions                                                    `fusion.objective.losses`

Sister, reachable by parameters (params/hbaf-sister.yaml): one vector an utterance, so attention is among turns
(`attends: turns`); a cross-entropy for each head (`loss.auxiliary: 1`); one contrast between the modalities in the
manner of CLIP (`loss.absolute` is its weight, `loss.relative: 0`). It has no audio context network and no levels.

Our choices:

- What the conversation says is read from its text: summaries pool an utterance's tokens.
- With `attends: turns`, frames and tokens are pooled to one vector each, on each level, and bimodal attention is among
  the turns of the conversation that have the modality, with a learned weight for each distance, as a head cannot count.
  The authors' sister paper (arXiv 2503.05858) has one vector an utterance. The audio context network still looks at
  tokens.
- Levels have parameters of their own, and are mixed position by position, by one pair of weights for each modality.
- The conversation encoder adds what it finds to each utterance, a = LN(a + GRU(a)), one for each modality.
- The auxiliary heads and the embeddings take the same two vectors as the classifier.
- An utterance without a modality pools to zeros there, and attention to nothing gives zeros.

And what each switch leaves:

- `context: text | conversation` keeps one source of content. `none` leaves the audio of the context level as it is,
  with as many levels as before, so that a row of an ablation table tells what the content brings.
- `levels: raw | context` has one level, thus nothing to mix; with `raw` there is no audio context network. `auto` is
  `both`, and `raw` where a modality is withheld.
- `self_attention: false` leaves Z = LN(X + r K), `cross_attention: false` Z = LN(X + S), both without the gate, which
  has nothing to choose between. With both switched off nothing would be left, which is refused.
- `gate: false` weighs both relations by one half. The gate inside the audio context network stays.
- `relevance: false` takes every cross-modal relation for true, r = 1.
- `residual: false` leaves out X in the sum, Z = LN(g S + (1 - g) r K). The sum around the feed-forward network stays.
- `direction: past` lets no later turn influence an earlier one, anywhere in the model.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fusion.batch import Batch, Group, Output, Turns
from fusion.layers import (
    AttentionAmongTurns,
    AttentionPooling,
    Constant,
    ConversationEncoder,
    Direction,
    Embedding,
    EncodeBoth,
    Gate,
    InputProjection,
    KeyMask,
    MeanPooling,
    MultiHeadAttention,
    Parts,
    SequenceDropout,
    TurnGRU,
    Unchanged,
    WeightedMix,
    classifier,
    collect_views,
    feed_forward,
    gather_neighbours,
    turn_keys,
    zero_padding,
)
from fusion.models.interface import HubModel
from fusion.models.shared import EVERYTHING, ConversationEncoding, Heads, Needs, SharedParams, Sizes, Wanted


class HBAFParams(SharedParams):
    """Group `model.hbaf`, and the shared keys that the model takes; see the module for what each switch leaves."""

    heads: Heads = 4  # of every attention
    conversation_encoder: ConversationEncoding = "gru"
    attends: Literal["positions", "turns"] = "positions"  # bimodal attention: of an utterance, or of a conversation
    context: Literal["none", "text", "conversation", "both"] = "both"  # what audio frames look up
    context_turns: int = Field(4, ge=1, le=1000)  # turns on each side whose summaries are context
    levels: Literal["auto", "both", "raw", "context"] = "auto"  # of fusion; auto: both, or raw without a modality
    self_attention: bool = True  # intra-modal relations
    cross_attention: bool = True  # inter-modal relations
    gate: bool = True  # per dimension, between the two relations
    relevance: bool = True  # per position, may close a false cross-modal relation
    residual: bool = True

    needs: ClassVar[Needs] = {"context_turns": ("context", "conversation", "both")}

    def for_modalities(self, given: Collection[str]) -> "HBAFParams":
        """Levels differ in what the audio knows of the text: without either they would hold (nearly) the same twice."""
        levels = "both" if len(given) > 1 else "raw"
        return self.model_copy(update={"levels": levels}) if self.levels == "auto" else self

    def doubt(self, longest: Mapping[str, int]) -> str:
        single = " and ".join(name for name, rows in longest.items() if rows == 1)
        if self.attends == "turns" or not single:
            return ""
        return (
            f"model.hbaf.attends is positions, but no utterance has more than one row of {single}: attention to it has "
            "nothing to choose from; set model.hbaf.attends to turns, for attention among the turns of a conversation"
        )

    @model_validator(mode="after")
    def _leaves_something(self) -> "HBAFParams":
        if not (self.self_attention or self.cross_attention):
            raise ValueError("self_attention and cross_attention are both false: nothing is left to fuse")
        return self


Keys = tuple[Tensor, Tensor]  # (utterances, keys, dim) and their mask (utterances, keys)
Content = Sequence[Keys]  # of each source


class Tokens(nn.Module):
    """Content from an utterance itself: its tokens.

    Shape:
        returns: of each group of `batch`, keys (utterances, tokens, dim) and their mask (utterances, tokens)
    """

    def forward(self, batch: Batch) -> list[Keys]:
        return [(group.text, group.text_mask) for group in batch.groups]


class Neighbours(nn.Module):
    """Content from around an utterance: summaries of the nearest turns, passed along the conversation by a GRU.

    Shape:
        returns: of each group of `batch`, keys (utterances, neighbours, dim) and their mask (utterances, neighbours)
    """

    offsets: Tensor

    def __init__(self, dim: int, turns: int, direction: Direction) -> None:
        super().__init__()
        offsets = [*range(-turns, 0), *(range(1, turns + 1) if direction == "both" else ())]
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)
        self.pool = AttentionPooling(dim)
        self.pass_along = TurnGRU(dim, direction)

    def forward(self, batch: Batch) -> list[Keys]:
        summaries = batch.each(lambda group: self.pool(group.text, group.text_mask))  # (utterances, dim)
        summaries = self.pass_along(summaries, batch.turns)
        keys, exist = gather_neighbours(summaries, batch.turns, self.offsets)
        return [(keys, exist) for keys, exist in batch.by_group(keys, exist)]


class AudioContext(nn.Module):
    """The audio context network: Q = MHA(Ha; content), g = sigmoid(W [Ha; Q]), Hc = LN(Ha + g * Q).

    Shape:
        audio: (utterances, frames, dim)
        audio_mask: (utterances, frames), for `views` alone
        content: from `look_up`, of these utterances
        returns: (utterances, frames, dim)
    """

    def __init__(self, params: HBAFParams) -> None:
        super().__init__()
        dim = params.dim
        self.sources: Parts[Tokens | Neighbours] = Parts()
        if params.context in ("text", "both"):
            self.sources["text"] = Tokens()
        if params.context in ("conversation", "both"):
            self.sources["conversation"] = Neighbours(dim, params.context_turns, params.direction)
        self.attention = MultiHeadAttention(dim, params.heads)
        self.gate = Gate(dim, width=dim)
        self.dropout = SequenceDropout(params.dropout)
        self.norm = nn.LayerNorm(dim)

    def look_up(self, batch: Batch) -> list[Content]:
        """What all sources hold, of each group of `batch`."""
        return list(zip(*(source(batch) for source in self.sources.values()), strict=True))

    def forward(self, audio: Tensor, audio_mask: Tensor, content: Content) -> Tensor:
        keys, key_mask = _side_by_side(content)  # [Ht ; c_(u-K) .. c_(u+K)]
        heard = self.attention(audio, keys, key_mask)
        gate = self.gate(audio, heard)
        return self.norm(audio + self.dropout(gate * heard))

    def views(self, audio: Tensor, audio_mask: Tensor, content: Content) -> dict[str, Tensor]:
        keys, key_mask = _side_by_side(content)
        gate = self.gate(audio, self.attention(audio, keys, key_mask))
        weights = self.attention.weights(audio, keys, key_mask)
        return {"gate": gate * audio_mask[:, :, None], "attention": weights * audio_mask[:, None, :, None]}


def _side_by_side(content: Content) -> Keys:
    keys, masks = zip(*content, strict=True)
    return torch.cat(keys, dim=1), torch.cat(masks, dim=1)


class NoContext(Unchanged):
    """Takes the place of the audio context network."""

    def look_up(self, batch: Batch) -> list[None]:
        return [None for _ in batch.groups]


@dataclass(frozen=True, eq=False)
class TurnKeys:
    """One modality of the utterances of a batch as keys of attention among turns, as `KeyMask` is of positions.

    Shape:
        real: (utterances, 1), which have the modality
        by_turn: of (conversations, turns) or (conversations, turns, turns), from `turn_keys`
    """

    real: Tensor
    by_turn: KeyMask
    turns: Turns

    @property
    def queries(self) -> Tensor:
        """(utterances, 1, 1), of attention weights which of the rows are real."""
        return self.real[:, :, None]


Mask = KeyMask | TurnKeys


class Positions(nn.Module):
    """What bimodal attention is among: the frames and tokens of each utterance, as they are."""

    def forward(self, batch: Batch) -> Batch:
        return batch

    def keys(self, batch: Batch) -> list[tuple[Mask, Mask]]:
        """Of audio and text of each group."""
        return [(KeyMask(group.audio_mask), KeyMask(group.text_mask)) for group in batch.groups]


class PooledTurns(nn.Module):
    """What bimodal attention is among: the turns of each conversation, one vector of each modality.

    Shape:
        returns: a batch whose features are (utterances, 1, dim)
    """

    def __init__(self, dim: int, direction: Direction) -> None:
        super().__init__()
        self.direction = direction
        self.audio_pool = AttentionPooling(dim)
        self.text_pool = AttentionPooling(dim)

    def forward(self, batch: Batch) -> Batch:
        return batch.of_vectors(*batch.each(self._pool))

    def keys(self, batch: Batch) -> list[tuple[Mask, Mask]]:
        """Of audio and text of each group, which is one."""
        return [(self._keys(batch.audio_present, batch.turns), self._keys(batch.text_present, batch.turns))]

    def _pool(self, group: Group) -> tuple[Tensor, Tensor]:
        return self.audio_pool(group.audio, group.audio_mask), self.text_pool(group.text, group.text_mask)

    def _keys(self, present: Tensor, turns: Turns) -> TurnKeys:
        return TurnKeys(present[:, None], turn_keys(present, turns, self.direction), turns)


class AmongTurns(nn.Module):
    """MHA(x; y) among the turns of each conversation, in the place of attention among the positions of an utterance.

    Shape:
        x, y: (utterances, 1, dim)
        returns: (utterances, 1, dim)
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = AttentionAmongTurns(dim, heads)

    def forward(self, x: Tensor, y: Tensor, y_keys: TurnKeys) -> Tensor:
        query = x[:, 0]
        return self.attention(query, query if y is x else y[:, 0], y_keys.by_turn, y_keys.turns)[:, None]

    def weights(self, x: Tensor, y: Tensor, y_keys: TurnKeys) -> Tensor:
        """(utterances, heads, turns)."""
        return self.attention.weights(x[:, 0], y[:, 0], y_keys.by_turn, y_keys.turns)


Attention = MultiHeadAttention | AmongTurns | Constant[float]  # the last one where it is switched off


class BimodalAttention(nn.Module):
    """Dynamic bimodal attention: one modality x, enriched with itself and with the other modality y.

        S = MHA(x; x)    K = MHA(x; y)    r = sigmoid(w [x; K])    g = sigmoid(W [S; K])
        z = LN(x + g * S + (1 - g) * r * K)
        z = LN(z + FFN(z))

    Shape:
        x: (utterances, positions, dim), one position each among turns
        y: (utterances, others, dim)
        x_mask: of (utterances, positions)
        y_mask: of (utterances, others)
        returns: (utterances, positions, dim)
    """

    def __init__(self, params: HBAFParams) -> None:
        super().__init__()
        dim, heads, dropout = params.dim, params.heads, params.dropout
        attend = MultiHeadAttention if params.attends == "positions" else AmongTurns
        self.intra: Attention = attend(dim, heads) if params.self_attention else Constant(0.0)
        self.inter: Attention = attend(dim, heads) if params.cross_attention else Constant(0.0)
        self.relevance = Gate(dim, width=1) if params.cross_attention and params.relevance else Constant(1.0)
        if params.self_attention and params.cross_attention:
            self.gate = Gate(dim, width=dim) if params.gate else Constant(0.5)
        else:
            self.gate = Constant(1.0 if params.self_attention else 0.0)
        self.residual = Unchanged() if params.residual else Constant(0.0)
        self.dropout = SequenceDropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.feed_forward = feed_forward(dim, dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, y: Tensor, x_mask: Mask, y_mask: Mask) -> Tensor:
        own, other, relevance, gate = self._relate(x, y, x_mask, y_mask)
        true = relevance * other
        z = self.norm(self.residual(x) + self.dropout(true + gate * (own - true)))
        return self.feed_forward_norm(z + self.feed_forward(z))

    def views(self, x: Tensor, y: Tensor, x_mask: Mask, y_mask: Mask) -> dict[str, Tensor]:
        _, _, relevance, gate = self._relate(x, y, x_mask, y_mask)
        intra = self.intra.weights(x, x, x_mask)  # type: ignore[arg-type]  # a mask of the kind that it takes
        inter = self.inter.weights(x, y, y_mask)  # type: ignore[arg-type]
        maps = {"intra": intra, "inter": inter}
        decisions = {"relevance": relevance, "gate": gate}
        return zero_padding(decisions, x_mask.real[:, :, None]) | zero_padding(maps, x_mask.queries)

    def _relate(self, x: Tensor, y: Tensor, x_mask: Mask, y_mask: Mask) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own = self.intra(x, x, x_mask)
        other = self.inter(x, y, y_mask)
        return own, other, self.relevance(x, other), self.gate(own, other)


class Level(nn.Module):
    """One level of fusion: both directions of bimodal attention, between audio as `augment` leaves it and text.

    Shape:
        audio: (utterances, frames, dim), of what `enrich` returns
        audio_mask: of (utterances, frames)
        text: (utterances, tokens, dim)
        text_mask: of (utterances, tokens)
        returns: audio (utterances, frames, dim) and text (utterances, tokens, dim)
    """

    def __init__(self, augment: AudioContext | NoContext, params: HBAFParams) -> None:
        super().__init__()
        self.augment = augment
        self.audio = BimodalAttention(params)
        self.text = BimodalAttention(params)

    def enrich(self, batch: Batch) -> Batch:
        """Hc, or Ha, in the place of the audio."""
        contents = self.augment.look_up(batch)
        audios = [
            self.augment(group.audio, group.audio_mask, content)
            for group, content in zip(batch.groups, contents, strict=True)
        ]
        pairs = zip(batch.groups, audios, strict=True)
        return replace(batch, groups=[replace(group, audio=audio) for group, audio in pairs])

    def forward(self, audio: Tensor, audio_mask: Mask, text: Tensor, text_mask: Mask) -> tuple[Tensor, Tensor]:
        return self.audio(audio, text, audio_mask, text_mask), self.text(text, audio, text_mask, audio_mask)


class HBAF(nn.Module, HubModel, paper_url="https://arxiv.org/abs/2503.06405"):
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

    where <level> is raw or context, <modality> is audio or text, and positions are its frames or tokens. Where it
    attends to turns there is one position, and

        levels.<level>.<modality>.intra        (utterances, heads, turns)
        levels.<level>.<modality>.inter        (utterances, heads, turns)
        among.<modality>_pool.weights          (utterances, frames or tokens), on the last level
    """

    Params = HBAFParams
    losses = ("auxiliary", "contrastive")

    def __init__(self, params: HBAFParams, sizes: Sizes, wanted: Wanted = EVERYTHING) -> None:
        super().__init__()
        dim, dropout, classes = params.dim, params.dropout, sizes.classes
        names = [params.levels] if params.levels in ("raw", "context") else ["raw", "context"]

        def level(name: str) -> Level:
            augments = name == "context" and params.context != "none"
            return Level(AudioContext(params) if augments else NoContext(), params)

        def encoder() -> nn.Module:
            encodes = params.conversation_encoder == "gru"
            return ConversationEncoder(dim, params.direction, dropout) if encodes else Unchanged()

        self.audio_input = InputProjection(sizes.audio_dim, sizes.audio_layers, dim, dropout)
        self.text_input = InputProjection(sizes.text_dim, sizes.text_layers, dim, dropout)
        self.levels: Parts[Level] = Parts({name: level(name) for name in names})
        turns = params.attends == "turns"
        self.among = PooledTurns(dim, params.direction) if turns else Positions()
        self.audio_mix = WeightedMix(len(names)) if len(names) > 1 else Unchanged()
        self.text_mix = WeightedMix(len(names)) if len(names) > 1 else Unchanged()
        self.audio_pool = MeanPooling() if turns else AttentionPooling(dim)
        self.text_pool = MeanPooling() if turns else AttentionPooling(dim)
        self.audio_encoder = encoder()
        self.text_encoder = encoder()
        self.encode_both = EncodeBoth(dim, params.direction)
        self.classifier = classifier(3 * dim, dim, classes, dropout)
        self.audio_head = nn.Linear(dim, classes) if wanted.auxiliary else Constant(None)
        self.text_head = nn.Linear(dim, classes) if wanted.auxiliary else Constant(None)
        self.audio_embedding = Embedding(dim) if wanted.contrastive else Constant(None)
        self.text_embedding = Embedding(dim) if wanted.contrastive else Constant(None)

    def forward(self, batch: Batch, views: bool = False) -> Output:
        batch = batch.joined() if views else batch
        with collect_views(self, views) as shown:
            h = batch.encoded(self._project)  # Ha = LN(Wa xa), Ht = LN(Wt xt)
            levels = [self.among(level.enrich(h)) for level in self.levels.values()]  # Ha and Hc, each with Ht
            a, t = levels[0].each(self._fuse, self.among.keys(levels[0]), *(one.groups for one in levels))
            encoders = self.audio_encoder, self.text_encoder
            a, t = self.encode_both(encoders, a, t, batch.turns)  # a = LN(a + GRU(a)), t likewise
            return Output(
                logits=self.classifier(torch.cat([a, t, a * t], dim=-1)),  # MLP([a; t; a * t])
                audio_logits=self.audio_head(a),
                text_logits=self.text_head(t),
                audio=self.audio_embedding(a),
                text=self.text_embedding(t),
                views=shown,
            )

    def _project(self, group: Group) -> tuple[Tensor, Tensor]:
        return self.audio_input(group.audio), self.text_input(group.text)

    def _fuse(self, _: Group, masks: tuple[Mask, Mask], *groups: Group) -> tuple[Tensor, Tensor]:
        """Both modalities of some utterances on all levels, each of which has its group: (utterances, dim) twice."""
        audio_mask, text_mask = masks
        levels = [
            level(group.audio, audio_mask, group.text, text_mask)
            for level, group in zip(self.levels.values(), groups, strict=True)
        ]
        audios, texts = zip(*levels, strict=True)  # of each level: (utterances, positions, dim)
        audio = self.audio_pool(self.audio_mix(*audios), audio_mask.real)
        return audio, self.text_pool(self.text_mix(*texts), text_mask.real)
