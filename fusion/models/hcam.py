"""HCAM, hierarchical cross-attention model (arXiv 2304.06910): each modality alone, along the conversation, together.

The paper's body was not available: its abstract and public notes name the parts, and how they are built is our reading.

Stated                                                          Here
-----------------------------------------------------------     ----------------------------------------------------
three stages, trained hierarchically                            `Unimodal` utterance, `Unimodal` conversation, `Fusion`
I: bidirectional GRU layers with self-attention turn frames     `UtteranceEncoder` of each modality, with a classifier
    or tokens into one embedding per utterance                      of its own
II: a contextual GRU with self-attention over the turns         `ContextEncoder` of each modality, with a classifier
III: co-attention between the two modalities, then              `CoAttentionBlock`, a few of them, and a classifier on
    self-attention                                                  both
a convex mix of cross-entropy and supervised contrastive        `Head` gives an embedding, `loss.supervised` the share
    loss
test-time ensembling of the stages                              `Ensemble` of all heads, off by default
a learnable wav2vec front end                                   not in here: the encoder is fine-tuned first, and
                                                                    features are extracted from the result

Our choices:

- Each recurrence and attention adds what it finds to its input, behind a layer norm.
- Attention pooling turns positions into the embedding of an utterance.
- A stage that is frozen is left in evaluation mode: what it makes of the data is computed once, before the next stage.
- Attention along the turns learns weights of distances; a GRU along the turns needs none.
- Stages II and III drop a share of the vectors that they are given, as stage I does of the features.
- An utterance without a modality has no vector of it in any stage: zeros, to which nobody attends.
- Where the two heads of a stage are to speak with one voice, log posteriors of what is present are averaged, of
  scores the scores themselves.

And what each switch leaves:

- `stages` without `utterance`: frames and tokens are projected and averaged, without recurrence, attention or a head.
  Without `conversation`: embeddings of utterances are fused as they are. Without `fusion`: the two heads of the last
  stage speak with one voice.
- `training: joint` trains all at once from the start, the heads of the earlier stages as auxiliary ones
  (`loss.auxiliary`). With `hierarchical`, `freeze: false` lets earlier stages go on learning, heads likewise.
- `self_attention: false` leaves it out in all stages.
- `co_attention: audio` lets audio look at text and not the other way round, `text` the reverse, `none` neither.
- `blocks: 0` leaves a classifier on the two vectors of stage II.
- `direction: past` lets no later turn influence an earlier one, anywhere in the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from fusion.batch import Batch, Output, Turns
from fusion.layers import (
    AttentionPooling,
    Constant,
    ConversationEncoder,
    Direction,
    Embedding,
    Ensemble,
    InputProjection,
    KeyMask,
    MeanPooling,
    MultiHeadAttention,
    Parts,
    SequenceDropout,
    SequenceGRU,
    TurnAttention,
    Unchanged,
    classifier,
    collect_views,
    feed_forward,
    turn_keys,
)
from fusion.models.interface import HubModel, Stage, standardise_of
from fusion.models.shared import EVERYTHING, Heads, SharedParams, Sizes, Wanted

StageName = Literal["utterance", "conversation", "fusion"]
CoAttention = Literal["both", "audio", "text", "none"]
STAGES: tuple[StageName, ...] = ("utterance", "conversation", "fusion")


class HCAMParams(SharedParams):
    """Group `model.hcam`, and the shared keys that the model takes; see the module for what each switch leaves."""

    heads: Heads = 4  # of every attention
    stages: Annotated[tuple[StageName, ...], Field(min_length=1)] = STAGES
    training: Literal["hierarchical", "joint"] = "hierarchical"  # stage by stage, or all at once
    freeze: bool = True  # earlier stages, while a later one is trained
    self_attention: bool = True  # in all stages
    co_attention: CoAttention = "both"  # audio: audio looks at text
    blocks: int = Field(2, ge=0, le=100)  # of co-attention
    recurrent_layers: int = Field(1, ge=1, le=10)  # along frames and tokens
    ensemble: bool = False  # of what all heads say, by weights chosen on validation

    @field_validator("stages")
    @classmethod
    def _in_order(cls, stages: tuple[StageName, ...]) -> tuple[StageName, ...]:
        if stages != tuple(name for name in STAGES if name in stages):
            raise ValueError(f"must name some of {', '.join(STAGES)}, each once, in this order")
        return stages

    @model_validator(mode="after")
    def _halves(self) -> "HCAMParams":
        if self.dim % 2:
            raise ValueError(f"dim is {self.dim}: must be even for hcam, since GRUs along frames run both ways")
        return self


class RecurrentLayer(nn.Module):
    """LN(x + GRU(x)) along the frames or tokens, both ways.

    Shape:
        x: (utterances, positions, dim)
        mask: (utterances, positions)
        returns: (utterances, positions, dim)
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.gru = SequenceGRU(dim)
        self.dropout = SequenceDropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.gru(x, mask)))


class SelfAttention(nn.Module):
    """LN(x + MHA(x; x)) among the frames or tokens of an utterance.

    Shape:
        x: (utterances, positions, dim)
        mask: (utterances, positions)
        returns: (utterances, positions, dim)
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads)
        self.dropout = SequenceDropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.attention(x, x, mask)))


class UtteranceEncoder(nn.Module):
    """Stage I for one modality: an utterance's frames or tokens to one vector.

    Shape:
        returns: (utterances, dim), zeros where the utterance lacks the modality
    """

    def __init__(self, project: nn.Module, layers: Sequence[nn.Module], pool: nn.Module) -> None:
        super().__init__()
        self.project = project
        self.layers = nn.ModuleList(layers)
        self.pool = pool

    def forward(self, batch: Batch, modality: str) -> Tensor:
        return batch.each(lambda group: self._encode(*group.modality(modality)))

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.project(x)  # (utterances, positions, dim)
        for layer in self.layers:
            x = layer(x, mask)
        return self.pool(x, mask)


class ContextEncoder(nn.Module):
    """Stage II for one modality: the vectors of a conversation's utterances, each enriched with the others.

    Shape:
        returns: (utterances, dim), zeros where the utterance lacks the modality
    """

    def __init__(self, recurrent: nn.Module, attention: nn.Module, direction: Direction, dropout: float) -> None:
        super().__init__()
        self.direction = direction
        self.dropout = nn.Dropout(dropout)
        self.recurrent = recurrent
        self.attention = attention

    def forward(self, batch: Batch, modality: str) -> Tensor:
        present: Tensor = getattr(batch, f"{modality}_present")
        vectors = self.recurrent(self.dropout(batch.vectors(modality)), batch.turns)
        keys = turn_keys(present, batch.turns, self.direction)
        vectors = self.attention(vectors, vectors, keys, batch.turns)
        return vectors * present[:, None]


class Head(nn.Module):
    """A classifier, and an embedding for the supervised contrast.

    Shape:
        x: (utterances, features)
        returns: logits (utterances, classes) and embedding (utterances, dim) or None
    """

    def __init__(self, features: int, dim: int, classes: int, dropout: float, supervised: bool) -> None:
        super().__init__()
        self.classify = classifier(features, dim, classes, dropout)
        self.embed = (
            nn.Sequential(nn.Linear(features, dim), nn.GELU(), Embedding(dim)) if supervised else Constant(None)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.classify(x), self.embed(x)


class Modality(nn.Module):
    """One modality of a stage: its encoder, and its head, if it has one."""

    def __init__(self, encoder: nn.Module, head: Head | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head


class Unimodal(nn.Module):
    """Stage I or II: each modality by itself.

    `encode` makes of a batch another one in which an utterance has one vector of each modality that it has,
    (utterances, 1, dim); `classify` makes an `Output` of that. `voice` makes of a head's logits what is averaged,
    `standardise` of a batch what is encoded.
    """

    def __init__(self, audio: Modality, text: Modality, voice: nn.Module, standardise: nn.Module) -> None:
        super().__init__()
        self.standardise = standardise
        self.audio = audio
        self.text = text
        self.voice = voice
        self.classifies = audio.head is not None

    def encode(self, batch: Batch) -> Batch:
        batch = self.standardise(batch)
        return batch.of_vectors(self.audio.encoder(batch, "audio"), self.text.encoder(batch, "text"))

    def classify(self, batch: Batch) -> Output:
        assert self.audio.head is not None
        assert self.text.head is not None
        audio_logits, audio_embedding = self.audio.head(batch.vectors("audio"))
        text_logits, text_embedding = self.text.head(batch.vectors("text"))
        embeddings = {"audio": audio_embedding, "text": text_embedding}
        return Output(
            logits=_mean(self.voice(audio_logits), self.voice(text_logits), batch.audio_present, batch.text_present),
            audio_logits=audio_logits,
            text_logits=text_logits,
            embeddings={head: embedding for head, embedding in embeddings.items() if embedding is not None},
        )


class CoAttentionBlock(nn.Module):
    """Each modality looks at the other along the turns, then at itself, then a feed-forward network, all residual.

    Shape:
        audio, text: (utterances, dim)
        audio_keys, text_keys: from `turn_keys`
        returns: audio and text, (utterances, dim)
    """

    def __init__(self, params: HCAMParams) -> None:
        super().__init__()

        def attention(wanted: bool) -> nn.Module:
            return TurnAttention(params.dim, params.heads, params.dropout) if wanted else Unchanged()

        self.audio_to_text = attention(params.co_attention in ("both", "audio"))
        self.text_to_audio = attention(params.co_attention in ("both", "text"))
        self.audio_to_audio = attention(params.self_attention)
        self.text_to_text = attention(params.self_attention)
        self.audio_feed_forward = _FeedForward(params.dim, params.dropout)
        self.text_feed_forward = _FeedForward(params.dim, params.dropout)

    def forward(
        self, audio: Tensor, text: Tensor, audio_keys: KeyMask, text_keys: KeyMask, turns: Turns
    ) -> tuple[Tensor, Tensor]:
        a = self.audio_to_text(audio, text, text_keys, turns)
        t = self.text_to_audio(text, audio, audio_keys, turns)
        a = self.audio_to_audio(a, a, audio_keys, turns)
        t = self.text_to_text(t, t, text_keys, turns)
        return self.audio_feed_forward(a), self.text_feed_forward(t)


class _FeedForward(nn.Module):
    """LN(x + FFN(x)), (utterances, dim) -> the same."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.network = feed_forward(dim, dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.network(x[:, None])[:, 0])


class Fusion(nn.Module):
    """Stage III: both sequences of utterances, each enriched with the other, of a batch that stage II or I encoded."""

    classifies = True

    def __init__(self, blocks: Sequence[CoAttentionBlock], head: Head, direction: Direction, dropout: float) -> None:
        super().__init__()
        self.direction = direction
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)
        self.head = head

    def encode(self, batch: Batch) -> Batch:
        return batch

    def classify(self, batch: Batch) -> Output:
        audio, text = self.dropout(batch.vectors("audio")), self.dropout(batch.vectors("text"))  # (utterances, dim)
        present = [batch.audio_present, batch.text_present] if len(self.blocks) else []  # an export needs no idle mask
        keys = [turn_keys(x, batch.turns, self.direction) for x in present]
        for block in self.blocks:
            audio, text = block(audio, text, *keys, batch.turns)
        logits, embedding = self.head(torch.cat([audio, text], dim=-1))
        return Output(logits=logits, embeddings={} if embedding is None else {"fused": embedding})


Part = Unimodal | Fusion


class Chain(nn.Module):
    """Stages one after the other, from features to the output of the last one; those before it are `earlier`."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        super().__init__()
        self.parts: Parts[Part] = Parts(parts)

    def forward(self, batch: Batch) -> Output:
        outputs = {}
        for name, part in self.parts.items():
            batch = part.encode(batch)
            if part.classifies:
                outputs[name] = part.classify(batch)
        *earlier, last = outputs
        return replace(outputs[last], earlier={name: outputs[name] for name in earlier})

    def encode(self, batch: Batch) -> Batch:
        for part in self.parts.values():
            batch = part.encode(batch)
        return batch

    def branches(self) -> dict[str, nn.Module]:
        """The heads of the last stage, each with the weights behind it."""
        parts = list(self.parts.values())
        if isinstance(parts[-1], Fusion):
            return {"fused": self}
        return {name: nn.ModuleList(getattr(part, name) for part in parts) for name in ("audio", "text")}


class HCAM(nn.Module, HubModel, paper_url="https://arxiv.org/abs/2304.06910"):
    """Hierarchical cross-attention model. `forward` takes a `Batch` and returns an `Output`.

    The output's `earlier` holds what stages I and II return, under `utterance` and `conversation`; with `ensemble`
    also the fused head alone, under `single`. With `views=True` it also shows, where these parts exist:

        chain.parts.utterance.<modality>.encoder.pool.weights           (utterances, positions)
        chain.parts.utterance.<modality>.encoder.project.mix.weights    (layers,)
        chain.parts.conversation.<modality>.encoder.attention.attention (utterances, heads, turns)
        chain.parts.fusion.blocks.<n>.<one>_to_<other>.attention        (utterances, heads, turns)

    where <modality>, <one> and <other> are audio or text, and `audio_to_text` is audio looking at text.
    """

    Params = HCAMParams
    losses = ("auxiliary", "supervised")

    def __init__(self, params: HCAMParams, sizes: Sizes, wanted: Wanted = EVERYTHING) -> None:
        super().__init__()
        self.training_of_stages, self.freeze = params.training, params.freeze
        dim, heads, dropout, direction = params.dim, params.heads, params.dropout, params.direction
        stages, last = params.stages, params.stages[-1]

        def classify(features: int) -> Head:
            return Head(features, dim, sizes.classes, dropout, wanted.supervised)

        def head(stage: StageName) -> Head | None:
            silent = stage not in stages or (params.training == "joint" and not wanted.auxiliary and stage != last)
            return None if silent else classify(dim)

        def utterance(features: int, layers: int) -> Modality:
            project = InputProjection(features, layers, dim, dropout)
            if "utterance" not in stages:
                return Modality(UtteranceEncoder(project, [], MeanPooling()), None)
            inner: list[nn.Module] = [RecurrentLayer(dim, dropout) for _ in range(params.recurrent_layers)]
            inner += [SelfAttention(dim, heads, dropout)] if params.self_attention else []
            return Modality(UtteranceEncoder(project, inner, AttentionPooling(dim)), head("utterance"))

        def conversation() -> Modality:
            attention = TurnAttention(dim, heads, dropout) if params.self_attention else Unchanged()
            encoder = ContextEncoder(ConversationEncoder(dim, direction, dropout), attention, direction, dropout)
            return Modality(encoder, head("conversation"))

        voice = Unchanged() if wanted.scores else nn.LogSoftmax(dim=-1)
        parts: dict[str, Part] = {
            "utterance": Unimodal(
                utterance(sizes.audio_dim, sizes.audio_layers),
                utterance(sizes.text_dim, sizes.text_layers),
                voice,
                standardise_of(sizes) if params.standardise else Unchanged(),
            )
        }
        if "conversation" in stages:
            parts["conversation"] = Unimodal(conversation(), conversation(), voice, Unchanged())
        if "fusion" in stages:
            last_head = classify(2 * dim)  # before the blocks: the order decides which random weights each part gets
            blocks = [CoAttentionBlock(params) for _ in range(params.blocks)]
            parts["fusion"] = Fusion(blocks, last_head, direction, dropout)
        self.chain = Chain(parts)
        self.ensemble = Ensemble(_head_names(parts), wanted.scores) if params.ensemble else Unchanged()

    def stages(self) -> list[Stage]:
        """Hierarchical training: each stage that classifies, behind those before it; joint training: all at once."""
        if self.training_of_stages == "joint":
            return [Stage("joint", self.chain, self.chain.branches())]
        parts = dict(self.chain.parts.items())
        names = list(parts)
        ends = [index + 1 for index, name in enumerate(names) if parts[name].classifies]
        stages = []
        for begin, end in pairwise([0, *ends]):
            frozen = names[:begin] if self.freeze else []
            chain = Chain({name: parts[name] for name in names[len(frozen) : end]})
            encode = Chain({name: parts[name] for name in frozen}).encode if frozen else None
            stages.append(Stage(names[end - 1], chain, chain.branches(), encode))
        return stages

    def forward(self, batch: Batch, views: bool = False) -> Output:
        with collect_views(self, views) as shown:
            batch = batch.joined() if views else batch
            return replace(self.ensemble(self.chain(batch), batch), views=shown)


def _mean(audio: Tensor, text: Tensor, audio_present: Tensor, text_present: Tensor) -> Tensor:
    """Mean (utterances, classes) over the modalities that the utterance has; zeros where it has none."""
    has_audio, has_text = audio_present[:, None], text_present[:, None]
    total = audio * has_audio + text * has_text
    return total / (has_audio.int() + has_text.int()).clamp_min(1)


def _head_names(parts: Mapping[str, Part]) -> list[str]:
    """The heads of all stages, as `Output.heads` names them; averages of earlier stages are left out."""
    *earlier, last = [name for name, part in parts.items() if part.classifies]
    names = [f"{name}.{modality}" for name in earlier for modality in ("audio", "text")]
    return [*names, "fused"] if isinstance(parts[last], Fusion) else [*names, "audio", "text", "fused"]
