"""HCAM, hierarchical cross-attention model (arXiv 2304.06910): each modality alone, along the conversation, together.

The paper's body was not available: its abstract and public notes name the parts (stated). What its first author's own
public code does, in a precursor of 2022 and a successor (MiSTER-E, arXiv 2602.23300), was read (code): it may or may
not be what the paper did. params/hcam-paper.yaml names both. How the parts are built is our reading (ours).

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

Code, as switches that are off by default (params/hcam-paper.yaml turns them on):

- `pooling: mean`, `text_pooling: last`: audio is the mean over time, text the last state of a bidirectional GRU.
- `context_layers`: two bidirectional GRU layers of 200 a direction along the turns, in the successor three of 512.
- `turns`: four attentions side by side, to `all` turns, `neighbours` (one on each side), `own_speaker` and
  `other_speakers`. There each has GRUs of its own, and a ReLU layer behind it. Here they share the GRUs, and what they
  find is added up, which is a linear map of what they find side by side.
- `context_skip`, `fusion_skip`: a linear map of what stage II is given, added to what it gives; in the successor also
  one around all blocks of stage III.
- `attention_dim`: attention is narrower than the stream (60 to 360 of 400 to 1,600), with three heads.
- `head: linear`: the two vectors side by side, a layer norm, one linear layer.
- `contrast: views`: one supervised contrast over audio's and text's vectors of all turns, in the successor.
- Not as switches: convolutions of kernels 1, 3 and 5 along the turns before the GRUs, and experts, in the successor.

Our choices:

- Each recurrence and attention adds what it finds to its input, behind a layer norm.
- Attention pooling turns positions into the embedding of an utterance, unless `pooling` says otherwise.
- A stage that is frozen is left in evaluation mode: what it makes of the data is computed once, before the next stage.
- Attention along the turns learns weights of distances; a GRU along the turns needs none.
- Stages II and III drop a share of the vectors that they are given, as stage I does of the features.
- An utterance without a modality has no vector of it in any stage: zeros, to which nobody attends. A turn with nobody
  to attend to, such as the others' turns in a monologue, gets nothing from that attention.
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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import BeforeValidator, Field, field_validator, model_validator
from torch import Tensor, nn

from fusion.batch import Batch, Output, Turns
from fusion.layers import (
    Among,
    AttentionPooling,
    BranchedAttention,
    Constant,
    ConversationEncoder,
    ConversationLayers,
    Embedding,
    Ensemble,
    FeedForward,
    InputProjection,
    KeyMask,
    LastStates,
    LinearSkip,
    MeanPooling,
    Parts,
    RecurrentLayer,
    ScoreScale,
    SelfAttention,
    TurnAttention,
    Unchanged,
    classifier,
    collect_views,
    turn_keys,
)
from fusion.models.interface import HubModel, Stage, standardise_of
from fusion.models.shared import EVERYTHING, Heads, Needs, SharedParams, Sizes, Wanted

StageName = Literal["utterance", "conversation", "fusion"]
CoAttention = Literal["both", "audio", "text", "none"]
STAGES: tuple[StageName, ...] = ("utterance", "conversation", "fusion")
Pooling = Literal["attention", "mean", "last"]
POOLINGS: dict[Pooling, type[nn.Module]] = {"mean": MeanPooling, "last": LastStates}  # without weights


def _several(given: Any) -> Any:
    """One kind of turns is given as it is, several in a list."""
    return (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list) else given


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
    pooling: Pooling = "attention"  # of frames and tokens; last: the last state of each direction
    text_pooling: Pooling | None = None  # of tokens, if not the same
    context_layers: int = Field(1, ge=1, le=10)  # recurrent ones along turns
    turns: Annotated[tuple[Among, ...], BeforeValidator(_several), Field(min_length=1)] = ("all",)  # II attends to
    neighbour_turns: int = Field(1, ge=1, le=1000)  # on each side, of neighbours
    context_skip: bool = False  # a linear map of what stage II is given, added to what it gives
    attention_dim: int | None = Field(None, ge=1, le=4096)  # width of every attention, a multiple of heads; None: dim
    fusion_skip: bool = False  # the same around all blocks of stage III
    head: Literal["mlp", "linear"] = "mlp"  # of all stages; linear: a layer norm and one linear layer
    contrast: Literal["heads", "views"] = "heads"  # in each head, or over audio's and text's vectors of all turns
    ensemble: bool = False  # of what all heads say, by weights chosen on validation

    needs: ClassVar[Needs] = {"freeze": ("training", "hierarchical"), "neighbour_turns": ("turns", "neighbours")}

    @field_validator("stages")
    @classmethod
    def _in_order(cls, stages: tuple[StageName, ...]) -> tuple[StageName, ...]:
        if stages != tuple(name for name in STAGES if name in stages):
            raise ValueError(f"must name some of {', '.join(STAGES)}, each once, in this order")
        return stages

    @field_validator("turns")
    @classmethod
    def _each_once(cls, turns: tuple[Among, ...]) -> tuple[Among, ...]:
        if len(set(turns)) < len(turns):
            raise ValueError("every kind of turns may be given once only")
        return tuple(name for name in get_args(Among) if name in turns)

    @property
    def uses_speakers(self) -> bool:
        attends = self.self_attention and "conversation" in self.stages
        return attends and not {"own_speaker", "other_speakers"}.isdisjoint(self.turns)

    @model_validator(mode="after")
    def _halves(self) -> "HCAMParams":
        if self.dim % 2:
            raise ValueError(f"dim is {self.dim}: must be even for hcam, since GRUs along frames run both ways")
        return self


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
        rows, masks = zip(*(group.modality(modality) for group in batch.groups), strict=True)
        xs = [self.project(x) for x in rows]  # (utterances, positions, dim) of each group
        for layer in self.layers:
            xs = layer(xs, masks)
        return batch.each(lambda _, x, mask: self.pool(x, mask), xs, masks)


class ContextEncoder(nn.Module):
    """Stage II for one modality: the vectors of a conversation's utterances, each enriched with the others.

    Shape:
        returns: (utterances, dim), zeros where the utterance lacks the modality
    """

    def __init__(self, params: HCAMParams) -> None:
        super().__init__()
        dim, dropout, layers = params.dim, params.dropout, params.context_layers
        self.direction, self.turns, self.neighbours = params.direction, params.turns, params.neighbour_turns
        self.dropout = nn.Dropout(dropout)
        attention: nn.Module = Unchanged()  # before the GRUs: the order decides which random weights each part gets
        if params.self_attention and len(params.turns) == 1:
            attention = TurnAttention(dim, params.heads, dropout, params.attention_dim)
        elif params.self_attention:
            attention = BranchedAttention(params.turns, dim, params.heads, dropout, params.attention_dim)
        recurrent = [ConversationEncoder(dim, params.direction, dropout) for _ in range(layers)]
        self.recurrent = recurrent[0] if layers == 1 else ConversationLayers(recurrent)
        self.attention = attention
        self.skip = LinearSkip(dim) if params.context_skip else Unchanged()

    def forward(self, batch: Batch, modality: str) -> Tensor:
        present: Tensor = getattr(batch, f"{modality}_present")
        given = self.dropout(batch.vectors(modality))
        vectors = self.recurrent(given, batch.turns)
        keys, *others = (
            turn_keys(present, batch.turns, self.direction, among, self.neighbours) for among in self.turns
        )
        vectors = self.attention(vectors, vectors, keys, batch.turns, *others)
        return self.skip(vectors, given) * present[:, None]


class Head(nn.Module):
    """A classifier, and an embedding for the supervised contrast.

    Shape:
        x: (utterances, features)
        returns: logits (utterances, classes) and embedding (utterances, dim) or None
    """

    def __init__(self, features: int, classes: int, params: HCAMParams, embeds: bool) -> None:
        super().__init__()
        if params.head == "mlp":
            self.classify = classifier(features, params.dim, classes, params.dropout)
        else:
            self.classify = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, classes))
        self.embed = _embedding(features, params.dim) if embeds else Constant(None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.classify(x), self.embed(x)


def _embedding(features: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, dim), nn.GELU(), Embedding(dim))


def _in_heads(**embeddings: Tensor | None) -> dict[str, Any]:
    """Fields of `Output`: the embedding of each head that has one."""
    return {"embeddings": {head: embedding for head, embedding in embeddings.items() if embedding is not None}}


def _as_views(audio: Tensor, text: Tensor) -> dict[str, Any]:
    """Fields of `Output`: the embeddings of both modalities as two views of a turn."""
    return {"pairs": torch.stack([audio, text], dim=1)}


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
    `standardise` of a batch what is encoded, `contrast` of both embeddings fields of the output.
    """

    def __init__(
        self,
        audio: Modality,
        text: Modality,
        voice: nn.Module,
        standardise: nn.Module,
        contrast: Callable[..., dict[str, Any]],
    ) -> None:
        super().__init__()
        self.contrast = contrast
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
        return Output(
            logits=_mean(self.voice(audio_logits), self.voice(text_logits), batch.audio_present, batch.text_present),
            audio_logits=audio_logits,
            text_logits=text_logits,
            **self.contrast(audio=audio_embedding, text=text_embedding),
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
            width = params.attention_dim
            return TurnAttention(params.dim, params.heads, params.dropout, width) if wanted else Unchanged()

        self.audio_to_text = attention(params.co_attention in ("both", "audio"))
        self.text_to_audio = attention(params.co_attention in ("both", "text"))
        self.audio_to_audio = attention(params.self_attention)
        self.text_to_text = attention(params.self_attention)
        self.audio_feed_forward = FeedForward(params.dim, params.dropout)
        self.text_feed_forward = FeedForward(params.dim, params.dropout)

    def forward(
        self, audio: Tensor, text: Tensor, audio_keys: KeyMask, text_keys: KeyMask, turns: Turns
    ) -> tuple[Tensor, Tensor]:
        a = self.audio_to_text(audio, text, text_keys, turns)
        t = self.text_to_audio(text, audio, audio_keys, turns)
        a = self.audio_to_audio(a, a, audio_keys, turns)
        t = self.text_to_text(t, t, text_keys, turns)
        return self.audio_feed_forward(a), self.text_feed_forward(t)


class ViewEmbeddings(nn.Module):
    """Embeddings of both modalities' vectors, (utterances, dim) each, as two views of a turn."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.audio = _embedding(dim, dim)
        self.text = _embedding(dim, dim)

    def forward(self, audio: Tensor, text: Tensor) -> dict[str, Any]:
        return _as_views(self.audio(audio), self.text(text))


class Fusion(nn.Module):
    """Stage III: both sequences of utterances, each enriched with the other, of a batch that stage II or I encoded."""

    classifies = True

    def __init__(self, params: HCAMParams, classes: int, supervised: bool) -> None:
        super().__init__()
        dim, views = params.dim, supervised and params.contrast == "views"
        self.direction = params.direction
        self.dropout = nn.Dropout(params.dropout)
        head = Head(2 * dim, classes, params, embeds=supervised and not views)  # before the blocks, as above
        self.blocks = nn.ModuleList(CoAttentionBlock(params) for _ in range(params.blocks))
        self.head = head
        self.audio_skip = LinearSkip(dim) if params.fusion_skip else Unchanged()
        self.text_skip = LinearSkip(dim) if params.fusion_skip else Unchanged()
        self.views = ViewEmbeddings(dim) if views else Constant({})

    def encode(self, batch: Batch) -> Batch:
        return batch

    def classify(self, batch: Batch) -> Output:
        a, t = self.dropout(batch.vectors("audio")), self.dropout(batch.vectors("text"))  # (utterances, dim)
        audio, text = a, t
        present = [batch.audio_present, batch.text_present] if len(self.blocks) else []  # an export needs no idle mask
        keys = [turn_keys(x, batch.turns, self.direction) for x in present]
        for block in self.blocks:
            audio, text = block(audio, text, *keys, batch.turns)
        audio, text = self.audio_skip(audio, a), self.text_skip(text, t)
        logits, embedding = self.head(torch.cat([audio, text], dim=-1))
        return Output(logits=logits, **_in_heads(fused=embedding), **self.views(audio, text))


Part = Unimodal | Fusion


class Chain(nn.Module):
    """Stages one after the other, from features to the output of the last one; those before it are `earlier`."""

    def __init__(self, parts: Mapping[str, Part], scale: nn.Module) -> None:
        super().__init__()
        self.parts: Parts[Part] = Parts(parts)
        self.scale = scale  # of what heads give

    def forward(self, batch: Batch) -> Output:
        outputs = {}
        for name, part in self.parts.items():
            batch = part.encode(batch)
            if part.classifies:
                outputs[name] = self.scale(part.classify(batch))
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
        chain.parts.conversation.<modality>.encoder.attention.attention (utterances, heads, turns); of several branches
                                                                        .<branch> in the place of .attention
        chain.parts.fusion.blocks.<n>.<one>_to_<other>.attention        (utterances, heads, turns)

    where <modality>, <one> and <other> are audio or text, and `audio_to_text` is audio looking at text.
    """

    Params = HCAMParams
    losses = ("auxiliary", "supervised")

    def __init__(self, params: HCAMParams, sizes: Sizes, wanted: Wanted = EVERYTHING) -> None:
        super().__init__()
        self.training_of_stages, self.freeze = params.training, params.freeze
        dim, heads, dropout, classes = params.dim, params.heads, params.dropout, sizes.classes
        stages, last = params.stages, params.stages[-1]

        def head(stage: StageName) -> Head | None:
            silent = stage not in stages or (params.training == "joint" and not wanted.auxiliary and stage != last)
            return None if silent else Head(dim, classes, params, wanted.supervised)

        def utterance(features: int, layers: int, pooling: Pooling) -> Modality:
            project = InputProjection(features, layers, dim, dropout)
            if "utterance" not in stages:
                return Modality(UtteranceEncoder(project, [], MeanPooling()), None)
            inner: list[nn.Module] = [RecurrentLayer(dim, dropout) for _ in range(params.recurrent_layers)]
            inner += [SelfAttention(dim, heads, dropout, params.attention_dim)] if params.self_attention else []
            pool = AttentionPooling(dim) if pooling == "attention" else POOLINGS[pooling]()
            return Modality(UtteranceEncoder(project, inner, pool), head("utterance"))

        def conversation() -> Modality:
            return Modality(ContextEncoder(params), head("conversation"))

        voice = Unchanged() if wanted.scores else nn.LogSoftmax(dim=-1)
        contrast = _as_views if wanted.supervised and params.contrast == "views" else _in_heads
        parts: dict[str, Part] = {
            "utterance": Unimodal(
                utterance(sizes.audio_dim, sizes.audio_layers, params.pooling),
                utterance(sizes.text_dim, sizes.text_layers, params.text_pooling or params.pooling),
                voice,
                standardise_of(sizes) if params.standardise else Unchanged(),
                contrast,
            )
        }
        if "conversation" in stages:
            parts["conversation"] = Unimodal(conversation(), conversation(), voice, Unchanged(), contrast)
        if "fusion" in stages:
            parts["fusion"] = Fusion(params, classes, wanted.supervised)
        self.chain = Chain(parts, ScoreScale() if classes == 1 else Unchanged())
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
            chain = Chain({name: parts[name] for name in names[len(frozen) : end]}, self.chain.scale)
            encode = Chain({name: parts[name] for name in frozen}, Unchanged()).encode if frozen else None
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
