"""A split of a feature file, and batches of whole conversations gathered from it on the training device; and the file
as a torch `Dataset`, for models and loops of your own.

Axes: utterances, conversations, turns, frames (audio) or tokens (text), layers, dim.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fusion.batch import Batch, Group, Turns
from fusion.data.batches import GROUPING, Plan, draw_batches, make_plan, move
from fusion.data.rows import Chosen, Mapped, Ragged, Resident, load_together, map_rows, resident_bytes
from fusion.errors import FeatureError
from fusion.objective import Target, find_task
from fusion.params import Modalities, Recipe
from pipeline.settings import in_bytes
from pipeline.store import MODALITIES, Features, Part, read_features

SHARED = {"audio": 0.02, "text": 0.5}  # shares of what is tested that may be the same in train
ENCODED = 16  # conversations at a time; what is encoded does not depend on it

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Split:
    """All utterances of one split, conversation by conversation, turn by turn."""

    name: str
    ids: list[str]
    conversation_ids: list[str]  # one an utterance
    labels: Tensor  # (utterances,) int64 on the CPU, -1 = unlabelled
    scores: Tensor  # (utterances,) float32 on the CPU, nan = none
    conversations: Tensor  # (conversations + 1,) int64 on the CPU: conversation i owns utterances [i] .. [i + 1]
    speakers: Tensor  # (utterances,) int64 on the CPU, as in `Turns`
    speaker_names: list[str]  # one an utterance; "" where it is not known
    audio: Ragged
    text: Ragged

    @property
    def device(self) -> torch.device:
        """Where the features lie and batches are gathered."""
        return self.audio.device

    def gather(self, conversations: Tensor) -> Batch:
        """The batch of the conversations with these indices (conversations,), in the order given."""
        return next(self._gather([conversations]))

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Every conversation once: in order, `size` a batch, or as `generator` draws them (`draw_batches`)."""
        if generator is None:
            yield from self._gather(torch.arange(len(self.conversations) - 1).split(size))
            return
        turns = self.conversations.diff()
        ends = (self.audio.lengths + self.text.lengths).cumsum(0)
        rows = torch.cat([torch.zeros(1, dtype=torch.int64), ends])[self.conversations].diff()
        yield from self._gather(draw_batches(rows, turns, size, generator))

    def _gather(self, batches: Sequence[Tensor]) -> Iterator[Batch]:
        lengths, grouping = (self.audio.lengths, self.text.lengths), GROUPING[self.device.type]
        plans = [make_plan(conversations, self.conversations, *lengths, grouping) for conversations in batches]
        for host, here in zip(plans, move(plans, self.device), strict=True):
            yield self.gather_one(host, here)

    def gather_one(self, host: Plan, here: Plan) -> Batch:
        """The batch of a plan, which lies on the host and on the device of the features."""
        groups = []
        members = zip(host.members.split(host.sizes), here.members.split(host.sizes), strict=True)
        for (on_host, at), frames, tokens in zip(members, host.frames, host.tokens, strict=True):
            chosen = Chosen(host.utterances[on_host], here.utterances.index_select(0, at))
            audio, audio_mask = self.audio.gather(chosen, frames)
            text, text_mask = self.text.gather(chosen, tokens)
            groups.append(Group(at, audio, audio_mask, text, text_mask))
        turn_mask = torch.arange(host.longest, device=self.device) < here.turns[:, None]
        labels, scores, speakers = (known.index_select(0, here.utterances) for known in self._known)
        return Batch(groups, here.order, labels, scores, Turns(turn_mask, here.places, speakers))

    @cached_property
    def _known(self) -> tuple[Tensor, Tensor, Tensor]:
        """Labels, scores and speakers, where arithmetic is."""
        return self.labels.to(self.device), self.scores.to(self.device), self.speakers.to(self.device)


@torch.no_grad()
def encode_split(split: Split, encode: Callable[[Batch], Batch]) -> Split:
    """The same utterances with the vectors that `encode` makes of them, which stay on the device in float32."""
    batches = [encode(batch) for batch in split.batches(ENCODED)]
    vectors = {
        name: Resident.packed(
            torch.cat([batch.vectors(name)[getattr(batch, f"{name}_present")] for batch in batches]),
            torch.cat([getattr(batch, f"{name}_present") for batch in batches]).long().cpu(),
        )
        for name in ("audio", "text")
    }
    return replace(split, audio=vectors["audio"], text=vectors["text"])


def load_split(
    features: Features,
    name: str,
    *,
    modalities: Modalities,
    audio_frames: int,
    target: Target | None = "label",
    device: torch.device | str = "cpu",
    resident: bool = True,
) -> Split:  # seven: which rows, what a model is given of them, where they lie; no caller has them as one thing
    """The split `name`, gathered on `device`; rows of other splits are not read.

    Its rows are on `device`, too, or stay in the file where it is not to be `resident` (`hold` decides for several).
    Audio of more than `audio_frames` frames is average-pooled to as many. A modality that `modalities` withholds is
    empty in every utterance. `target` is what there must be to learn or to score; None: nothing.

    Raises:
        FeatureError: the split has no utterance, or none with a `target`, or a modality that is asked for is not in
            the file.
    """
    utterances = features.utterances
    here = [index for index, split in enumerate(utterances.splits) if split == name]
    if not here:
        raise FeatureError(
            f"{features.path}: no utterance is in the {name} split; give it whole conversations in the data set"
        )
    first, last = here[0], here[-1] + 1
    if last - first != len(here):
        raise AssertionError("a feature file is sorted by split")
    conversation_ids = utterances.conversations[first:last]
    split = Split(
        name=name,
        ids=utterances.ids[first:last],
        conversation_ids=conversation_ids,
        labels=torch.from_numpy(np.array(utterances.labels[first:last], np.int64)),
        scores=torch.from_numpy(np.array(utterances.scores[first:last], np.float32)),
        conversations=conversation_offsets(conversation_ids),
        speakers=number_speakers(conversation_ids, utterances.speakers[first:last]),
        speaker_names=list(utterances.speakers[first:last]),
        audio=_map_modality(features, "audio", here, modalities, audio_frames, torch.device(device)),
        text=_map_modality(features, "text", here, modalities, None, torch.device(device)),
    )
    if target:
        _check_truth(split, target, features.path)
    return hold([split], None)[0] if resident else split


def refuse_learned(features: Features, modalities: Collection[str], tested: np.ndarray, fix: str) -> None:
    """See that no encoder was fine-tuned on what is `tested` (utterances,) boolean.

    Short texts come again in other conversations, so that half of them may be known; of recordings hardly any does, and
    is warned of.

    Raises:
        FeatureError: one was, by the marks that `pipeline-finetune` leaves; the message ends with `fix`.
    """
    for name in modalities:
        part, known = getattr(features, name), features.count_learned(name, tested)
        there = 0 if part is None else int((np.diff(part.offsets) > 0)[tested].sum())
        said = f"its {name} encoder was fine-tuned on the labels of {known} of the {there} utterances that are tested"
        if known > max(1 if name == "audio" else 0, SHARED[name] * there):
            raise FeatureError(f"{features.path}: {said}, so scores would say nothing of others; {fix}")
        if known and name == "audio":
            log.warning("%s: %s: the same recordings are in train or validation, too", features.path, said)


def load_for(features: Features, recipe: Recipe, name: str, device: torch.device) -> Split:
    """The split `name` as models of `recipe` are given it, whose rows stay in the file; raises as `load_split`."""
    return load_split(
        features,
        name,
        modalities=recipe.model.modalities,
        audio_frames=recipe.model.audio_frames,
        target=recipe.train.target,
        device=device,
        resident=False,
    )


def _check_truth(split: Split, target: Target, path: Path) -> None:
    tasks = [find_task("label", 0), find_task("score", 0)]
    found = [task.target for task in tasks if bool(task.counted(task.truth(split)).any())]
    if target not in found:
        other = f", or set train.target to {found[0]}, which some have" if found else ""
        fix = f"give some of them one in the data set{other}"
        raise FeatureError(f"{path}: no utterance of the {split.name} split has a {target}; {fix}")


def withhold(split: Split, modalities: Modalities) -> Split:
    """The same split, sharing its rows, in which a modality that `modalities` withholds is empty everywhere."""
    everyone = torch.ones(len(split.ids), dtype=torch.bool)
    audio = split.audio if modalities in ("both", "audio") else split.audio.without(everyone)
    text = split.text if modalities in ("both", "text") else split.text.without(everyone)
    return replace(split, audio=audio, text=text)


def report_features(train: Split, recipes: Sequence[Recipe], aloud: bool = True) -> None:
    """Warn of columns that are constant, not finite, of wildly different scale or full of outliers, and of what models
    cannot do here.

    What is found out about columns is kept with the rows, for the models that standardise them; not `aloud`, that alone
    is done.
    """
    looked_at = [name for name in MODALITIES if any(name in recipe.model.looks_at for recipe in recipes)]
    rows: dict[str, Ragged] = {name: getattr(train, name) for name in looked_at}
    robust = [one.model.standardise == "robust" for one in recipes]
    after = "standardised" if recipes[0].model.standardise else "not standardised (model.standardise is false)"
    for name, own in rows.items():
        columns = [own.robust_columns if one else own.columns for one in robust]
        if (oddities := columns[0].oddities()) and aloud:
            log.warning("%s features of the train split, %s: %s", name, after, oddities)
    longest = {name: int(own.lengths.max()) for name, own in rows.items()}
    doubts = [one.own.doubt({name: longest[name] for name in one.model.looks_at}) for one in recipes]
    if not bool(train.speakers.any()):
        doubts += [
            f"model {one.model.name} looks at who speaks, but no conversation of the train split has more than one "
            "speaker: name their column in the data set (dataset.columns.speaker)"
            for one in recipes
            if one.own.uses_speakers
        ]
    for doubt in dict.fromkeys(filter(None, doubts)) if aloud else ():
        log.warning("%s", doubt)


def conversation_offsets(conversation_ids: list[str]) -> Tensor:
    """(conversations + 1,) int64: conversation i owns the utterances [i] .. [i + 1], which lie side by side."""
    ids = np.array(conversation_ids)
    starts = np.flatnonzero(ids[1:] != ids[:-1]) + 1
    return torch.from_numpy(np.concatenate([[0], starts, [len(ids)]]).astype(np.int64))


def number_speakers(conversation_ids: Sequence[str], names: Sequence[str]) -> Tensor:
    """(utterances,) int64: the speakers of each conversation from 0, as they come.

    >>> number_speakers(["x", "x", "x", "y"], ["Ross", "", "Ross", "Joey"]).tolist()
    [0, 1, 0, 0]
    """
    met: dict[str, dict[str, int]] = {}
    pairs = zip(conversation_ids, names, strict=True)
    return torch.tensor([(known := met.setdefault(one, {})).setdefault(name, len(known)) for one, name in pairs])


def hold(splits: Sequence[Split], memory: int | None) -> list[Split]:
    """Those `splits` with their rows on the device, if they take at most `memory` bytes there together; else as given.

    None sets no limit. Rows that stay in the file are read batch by batch: slower, with the same results.
    """
    needed = resident_bytes([rows for split in splits for rows in _mapped(split)])
    if memory is not None and needed > memory:
        log.warning(
            "the features take %s, more than train.memory leaves them (%s): they stay in the file and are "
            "read batch by batch, which is slower and gives the same results",
            in_bytes(needed),
            in_bytes(memory),
        )
        return list(splits)
    loaded = load_together([rows for split in splits for rows in _mapped(split)])
    return [
        replace(split, audio=loaded.get(id(split.audio), split.audio), text=loaded.get(id(split.text), split.text))
        for split in splits
    ]


def _mapped(split: Split) -> list[Mapped]:
    return [rows for rows in (split.audio, split.text) if isinstance(rows, Mapped)]


def _map_modality(
    features: Features, name: str, here: Sequence[int], modalities: Modalities, limit: int | None, device: torch.device
) -> Ragged:
    part: Part | None = getattr(features, name)
    if modalities not in ("both", name):
        shape = (1,) if part is None else part.values.shape[1:]
        return Resident.packed(torch.zeros(0, *shape, device=device), torch.zeros(len(here), dtype=torch.int64))
    if part is None:
        other = "text" if name == "audio" else "audio"
        raise FeatureError(
            f"{features.path}: holds no {name}, but model.modalities is '{modalities}'; "
            f"set model.modalities to '{other}', or join {name} features in"
        )
    return map_rows(part, here[0], here[-1] + 1, limit, device)


class FeatureItem(NamedTuple):
    """One utterance.

    Shape:
        audio: (frames, dim) or (frames, layers, dim) float32, frames 0 where it has none
        text: (tokens, dim) or (tokens, layers, dim) float32, tokens 0 where it has none
    """

    audio: Tensor
    text: Tensor
    label: int  # into the label names; -1: it has none
    score: float  # nan: it has none
    id: str


class FeatureDataset(Dataset[FeatureItem]):
    """The utterances of a `split`, or of all (None), in the order of the file; rows are read when asked for.

    Args:
        features: what `fusion.load_features` returned, or the path of a feature file.

    Raises:
        FeatureError: the file has no such split.
        StoreError: it is missing or damaged.
    """

    def __init__(self, features: Features | str | PathLike[str], split: str | None = None) -> None:
        self.features = features = features if isinstance(features, Features) else read_features(Path(features))
        splits = features.utterances.splits
        if split is not None and split not in splits:
            raise FeatureError(
                f"{features.path}: no utterance is of the split '{split}'; there are {', '.join(dict.fromkeys(splits))}"
            )
        self.indices = [index for index, name in enumerate(splits) if split in (None, name)]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> FeatureItem:
        index, table = self.indices[position], self.features.utterances
        audio, text = (_stored_rows(part, index) for part in (self.features.audio, self.features.text))
        return FeatureItem(audio, text, int(table.labels[index]), float(table.scores[index]), table.ids[index])


def _stored_rows(part: Part | None, index: int) -> Tensor:
    return (
        torch.zeros(0, 1, dtype=torch.float32, device="cpu")
        if part is None
        else torch.from_numpy(part.rows(index).astype("float32"))
    )
