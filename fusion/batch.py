"""What goes into a model and what comes out of it: whole conversations in, one row of numbers an utterance out.

Utterances lie flat, conversation by conversation and turn by turn. Their frames and tokens come in groups of utterances
of like length, so that little is padded. That is the batch's own business: a model says what is done with the positions
of some utterances (`Batch.each`, `Batch.encoded`), and what turns have to do with each other for all of them. Masks are
boolean, true = real.

`Turns` says where utterances stand in their conversations. Nothing here asks the device for a number, so that a step
of training never waits for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Turns:
    """The conversations of a batch.

    Attributes:
        mask: (conversations, turns) boolean, with as many true as there are utterances; every conversation fills its
            row from the left.
        places: (utterances,) int64, where each stands in `mask` when that is laid flat.
        speakers: (utterances,) int64, who speaks: the people of each conversation from 0, in the order in which they
            first speak; those of unknown name are one.

    >>> turns = Turns.of(torch.tensor([[True, False], [True, True]]))
    >>> turns.to_grid(torch.tensor([1, 2, 3])).tolist()
    [[1, 0], [2, 3]]
    >>> turns.number.tolist(), turns.count.tolist()
    ([0, 0, 1], [1, 2, 2])
    >>> turns.rows_back.tolist(), turns.places_back.tolist()
    ([[0, 0], [2, 1]], [0, 3, 2])
    """

    mask: Tensor
    places: Tensor
    speakers: Tensor

    @classmethod
    def of(cls, mask: Tensor, speakers: Tensor | None = None) -> "Turns":
        """Those of `mask`, each conversation by one speaker unless these are given; on a GPU this waits for it."""
        places = mask.flatten().nonzero().squeeze(1)
        return cls(mask, places, torch.zeros_like(places) if speakers is None else speakers)

    def to(self, device: torch.device | str) -> "Turns":
        """The same on `device`."""
        return Turns(self.mask.to(device), self.places.to(device), self.speakers.to(device))

    def to_grid(self, flat: Tensor) -> Tensor:
        """(utterances, ...) -> (conversations, turns, ...), zeros where no turn exists."""
        grid = flat.new_zeros(self.mask.numel(), *flat.shape[1:])
        return grid.index_copy(0, self.places, flat).unflatten(0, tuple(self.mask.shape))

    def spread(self, flat: Tensor) -> Tensor:
        """The same in one operation, with an utterance of the batch, whichever, where no turn exists."""
        return take_rows(flat, self.rows)

    def to_flat(self, grid: Tensor) -> Tensor:
        """The inverse of both: (conversations, turns, ...) -> (utterances, ...)."""
        return take_rows(grid.flatten(0, 1), self.places)

    @cached_property
    def number(self) -> Tensor:
        """(utterances,) int64, from 0 in each conversation."""
        return self.places % self.mask.shape[1]

    @cached_property
    def count(self) -> Tensor:
        """(utterances,) int64, how many turns the conversation of each has."""
        return self._counts.index_select(0, self.places // self.mask.shape[1])

    @cached_property
    def rows(self) -> Tensor:
        """(conversations, turns) int64, the utterance of each; of the batch, whichever, where no turn exists."""
        ends = self._counts.cumsum(0)
        return ((ends - self._counts)[:, None] + self._turn).clamp_max(self.places.shape[0] - 1)

    @cached_property
    def rows_back(self) -> Tensor:
        """`rows` with the turns of each conversation from last to first; what does not exist stays behind them."""
        return (self._counts.cumsum(0)[:, None] - 1 - self._turn).clamp_min(0)

    @cached_property
    def places_back(self) -> Tensor:
        """(utterances,) int64, where each stands in `rows_back` when that is laid flat."""
        return self.places + self.count - 1 - 2 * self.number

    @cached_property
    def distances(self) -> Tensor:
        """(turns, turns) int64, from the turn of the row to that of the column; negative for earlier ones."""
        return self._turn - self._turn[:, None]

    @cached_property
    def same_speaker(self) -> Tensor:
        """(conversations, turns, turns) boolean, whether both are spoken by one; any where a turn does not exist."""
        speakers = self.spread(self.speakers)
        return speakers[:, :, None] == speakers[:, None, :]

    @cached_property
    def _counts(self) -> Tensor:
        """(conversations,) int64, turns of each."""
        return self.mask.sum(dim=1)

    @cached_property
    def _turn(self) -> Tensor:
        return torch.arange(self.mask.shape[1], device=self.mask.device)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows] along the first axis: x (n, ...), rows (...) int64.

    Of vectors as an embedding: on a GPU its way back adds up rows in a fixed order without sorting, for up to 3,072 of
    them, where that of an index sorts.
    """
    if x.dim() == 2 and x.is_floating_point():
        return F.embedding(rows, x)
    return x.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def pad_together(groups: Sequence[Tensor]) -> Tensor:
    """(n, positions, ...) of each group -> (all n, most positions, ...), zeros or false behind."""
    if len(groups) == 1:
        return groups[0]
    longest = max(x.shape[1] for x in groups)
    return torch.cat([F.pad(x, [0, 0] * (x.dim() - 2) + [0, longest - x.shape[1]]) for x in groups])


def take_apart(together: Tensor, groups: Sequence[Tensor]) -> list[Tensor]:
    """The way back: (all n, most positions, ...) -> what stands at the positions of each group."""
    if len(groups) == 1:
        return [together]
    parts = together.split([len(x) for x in groups])
    return [part[:, : x.shape[1]] for part, x in zip(parts, groups, strict=True)]


@dataclass(frozen=True, eq=False)
class Group:
    """Utterances that are padded to the longest among them.

    An utterance may lack a modality (its mask is false throughout), and a modality that all of them lack may be 0 wide.
    What stands at padded frames and tokens does not matter, as long as it is finite.

    Shape:
        utterances: (n,) int64, which of the batch these are
        audio: (n, frames, dim), or (n, frames, layers, dim) for a learned mix of layers, float32
        audio_mask: (n, frames)
        text: (n, tokens, dim), or (n, tokens, layers, dim), float32
        text_mask: (n, tokens)
    """

    utterances: Tensor
    audio: Tensor
    audio_mask: Tensor
    text: Tensor
    text_mask: Tensor

    def modality(self, name: str) -> tuple[Tensor, Tensor]:
        """Features and mask of `audio` or `text`."""
        return getattr(self, name), getattr(self, f"{name}_mask")


@dataclass(frozen=True, eq=False)
class Batch:
    """Whole conversations.

    Shape:
        groups: of all utterances, each in one of them
        order: (utterances,) int64, the row of each where the groups lie one behind the other
        labels: (utterances,) int64, -1 = unlabelled
        scores: (utterances,) float32, nan = none
        turns: of as many utterances
        linear: (utterances, outputs), what a linear model makes of their features; None where nobody asked it
    """

    groups: Sequence[Group]
    order: Tensor
    labels: Tensor
    scores: Tensor
    turns: Turns
    linear: Tensor | None = None

    @classmethod
    def padded(
        cls,
        *,
        audio: Tensor,
        audio_mask: Tensor,
        text: Tensor,
        text_mask: Tensor,
        labels: Tensor,
        scores: Tensor,
        turn_mask: Tensor,
        speakers: Tensor | None = None,
    ) -> "Batch":
        """One group of all utterances, which lie in the order of `turn_mask` (conversations, turns).

        `speakers` are those of `Turns`; None: one in each conversation.
        """
        everyone = torch.arange(len(labels), device=labels.device)
        group = Group(everyone, audio, audio_mask, text, text_mask)
        return cls([group], everyone, labels, scores, Turns.of(turn_mask, speakers))

    @overload
    def each(self, encode: Callable[..., Tensor], *rows: Sequence[object]) -> Tensor: ...

    @overload
    def each(self, encode: Callable[..., tuple[Tensor, ...]], *rows: Sequence[object]) -> tuple[Tensor, ...]: ...

    def each(
        self, encode: Callable[..., Tensor | tuple[Tensor, ...]], *rows: Sequence[object]
    ) -> Tensor | tuple[Tensor, ...]:
        """What `encode` makes of the groups, one tensor (n, ...) or several, as (utterances, ...).

        Args:
            encode: is called with a group, and what each of `rows` has for it.
            rows: from `by_group`.
        """
        found = [encode(group, *of_group) for group, *of_group in zip(self.groups, *rows, strict=True)]
        single = [rows for rows in found if isinstance(rows, Tensor)]
        several = [rows for rows in found if not isinstance(rows, Tensor)]
        return self._gather(single) if single else tuple(self._gather(part) for part in zip(*several, strict=True))

    def encoded(self, encode: Callable[[Group], tuple[Tensor, Tensor]]) -> "Batch":
        """The same utterances with the audio and text that `encode` makes of each group."""
        pairs = [(group, *encode(group)) for group in self.groups]
        return replace(self, groups=[replace(group, audio=audio, text=text) for group, audio, text in pairs])

    def by_group(self, *xs: Tensor) -> list[tuple[Tensor, ...]]:
        """The rows of each group out of tensors (utterances, ...), for `each`."""
        if len(self.groups) == 1:
            return [xs]
        return [tuple(take_rows(x, group.utterances) for x in xs) for group in self.groups]

    def joined(self) -> "Batch":
        """The same in one group, padded to the longest utterance of all."""
        if len(self.groups) == 1:
            return self
        (audio, audio_mask), (text, text_mask) = (self._join(name) for name in ("audio", "text"))
        everyone = torch.arange(self.labels.shape[0], device=self.labels.device)
        return replace(self, groups=[Group(everyone, audio, audio_mask, text, text_mask)], order=everyone)

    def of_vectors(self, audio: Tensor, text: Tensor) -> "Batch":
        """The same conversations, in which an utterance has one vector of each modality that it has.

        Shape:
            audio, text: (utterances, dim)
        """
        everyone = torch.arange(self.labels.shape[0], device=self.labels.device)
        masks = self.audio_present[:, None], self.text_present[:, None]
        group = Group(everyone, audio[:, None], masks[0], text[:, None], masks[1])
        return replace(self, groups=[group], order=everyone)

    def vectors(self, modality: str) -> Tensor:
        """(utterances, dim) of a batch of vectors, zeros where the utterance has none."""
        return self.each(lambda group: group.modality(modality)[0].sum(dim=1))

    @cached_property
    def audio_present(self) -> Tensor:
        """(utterances,) boolean, whether the utterance has audio."""
        return self.each(lambda group: group.audio_mask.any(dim=1))

    @cached_property
    def text_present(self) -> Tensor:
        """(utterances,) boolean, whether the utterance has text."""
        return self.each(lambda group: group.text_mask.any(dim=1))

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        groups = [
            Group(**{item.name: getattr(group, item.name).to(device) for item in fields(Group)})
            for group in self.groups
        ]
        rest = {name: getattr(self, name).to(device) for name in ("order", "labels", "scores", "turns")}
        linear = None if self.linear is None else self.linear.to(device)
        return Batch(groups, **rest, linear=linear)

    def _gather(self, rows: Sequence[Tensor]) -> Tensor:
        """Rows (n, ...) of each group -> (utterances, ...)."""
        return rows[0] if len(rows) == 1 else take_rows(torch.cat(list(rows)), self.order)

    def _join(self, modality: str) -> tuple[Tensor, Tensor]:
        """Features and mask of all utterances, padded to the longest."""
        both = zip(*(group.modality(modality) for group in self.groups), strict=True)
        x, mask = (take_rows(pad_together(rows), self.order) for rows in both)
        return x, mask


@dataclass(frozen=True, eq=False)
class Output:
    """What every model returns; None or empty where a model, or a setting of it, lacks the part.

    Shape:
        logits: (utterances, classes), of the fused model; (utterances, 1), the score itself, where it tells scores
        audio_logits, text_logits: the same of the heads that see one modality's stream
        audio, text: (utterances, dim), embeddings of length 1 for the contrast between the modalities
        embeddings: by head (`fused`, `audio`, `text`), (utterances, dim) of length 1, for the supervised contrast
        pairs: (utterances, 2, dim) of length 1, audio's and text's as two views of a turn, for one contrast over both
        losses: by name, scalars that the model itself adds to the loss of the batch, already weighted
        earlier: by name, what the stages before the last one return
        views: by name, what the model shows of itself; empty unless asked for, shapes in the model's docstring
    """

    logits: Tensor
    audio_logits: Tensor | None = None
    text_logits: Tensor | None = None
    audio: Tensor | None = None
    text: Tensor | None = None
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    pairs: Tensor | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    earlier: Mapping[str, "Output"] = field(default_factory=dict)
    views: Mapping[str, Tensor] = field(default_factory=dict)

    def heads(self) -> dict[str, Tensor]:
        """The logits of every head by name: `fused`, `audio`, `text`, and `<stage>.<head>` of earlier stages."""
        own = {"fused": self.logits, "audio": self.audio_logits, "text": self.text_logits}
        named = {f"{stage}.{head}": x for stage, output in self.earlier.items() for head, x in output.heads().items()}
        return {head: logits for head, logits in own.items() if logits is not None} | named
