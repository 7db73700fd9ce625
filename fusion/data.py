"""A split of a feature file, resident on the training device, and batches of whole conversations gathered there.

Axes: utterances, conversations, turns, frames (audio) or tokens (text), layers, dim; rows are the frames or tokens of
all utterances one behind the other. Features stay in the precision of the file and become float32 when gathered.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fusion.batch import Batch
from fusion.errors import FeatureError
from fusion.params import Modalities
from fusion.tasks import Target, find_task
from pipeline.store import Features, Part

ENCODED = 16  # conversations at a time; what is encoded does not depend on it
POOLED_ROWS = 65_536  # rows pooled at a time: bounds the float32 copy to 200 MB at 768 dimensions


@dataclass(frozen=True, eq=False)
class Ragged:
    """One modality of a split."""

    values: Tensor  # (rows, dim) or (rows, layers, dim), float16 or float32, on the training device
    offsets: Tensor  # (utterances + 1,) int64, on the CPU: utterance i owns rows offsets[i] .. offsets[i + 1]

    @property
    def dim(self) -> int:
        """Width of a feature."""
        return self.values.shape[-1]

    @property
    def layers(self) -> int:
        """Encoder layers of a feature; 1 where there is no such axis."""
        return self.values.shape[1] if self.values.dim() == 3 else 1

    def gather(self, utterances: Tensor) -> tuple[Tensor, Tensor]:
        """Padded features (utterances, frames, [layers,] dim) in float32 and their mask (utterances, frames)."""
        device = self.values.device
        starts = self.offsets[utterances]
        lengths = self.offsets[utterances + 1] - starts
        frames = int(lengths.max()) if len(lengths) else 0
        position = torch.arange(frames, device=device)
        mask = position < lengths.to(device)[:, None]
        if frames == 0:
            return torch.zeros(len(utterances), 0, *self.values.shape[1:], device=device), mask
        rows = torch.where(mask, starts.to(device)[:, None] + position, 0)
        padded = self.values[rows].float()
        return padded.masked_fill_(~mask.view(*mask.shape, *[1] * (padded.dim() - 2)), 0.0), mask


@dataclass(frozen=True, eq=False)
class Split:
    """All utterances of one split, conversation by conversation, turn by turn."""

    name: str
    ids: list[str]
    conversation_ids: list[str]  # one an utterance
    labels: Tensor  # (utterances,) int64 on the CPU, -1 = unlabelled
    scores: Tensor  # (utterances,) float32 on the CPU, nan = none
    conversations: Tensor  # (conversations + 1,) int64 on the CPU: conversation i owns utterances [i] .. [i + 1]
    audio: Ragged
    text: Ragged

    @property
    def device(self) -> torch.device:
        """Where the features lie and batches are gathered."""
        return self.audio.values.device

    def gather(self, conversations: Tensor) -> Batch:
        """The batch of the conversations with these indices (conversations,), in the order given."""
        starts = self.conversations[conversations]
        lengths = self.conversations[conversations + 1] - starts
        turn = torch.arange(int(lengths.max()))
        turn_mask = turn < lengths[:, None]
        utterances = (starts[:, None] + turn)[turn_mask]
        audio, audio_mask = self.audio.gather(utterances)
        text, text_mask = self.text.gather(utterances)
        labels, scores = self.labels[utterances].to(self.device), self.scores[utterances].to(self.device)
        return Batch(audio, audio_mask, text, text_mask, labels, scores, turn_mask.to(self.device))

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Every conversation once, `size` a batch: in order, or shuffled by `generator`."""
        count = len(self.conversations) - 1
        order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        for conversations in order.split(size):
            yield self.gather(conversations)


@torch.no_grad()
def encode_split(split: Split, encode: Callable[[Batch], Batch]) -> Split:
    """The same utterances with the features that `encode` makes of them, which stay on the device in float32."""
    batches = [encode(batch) for batch in split.batches(ENCODED)]
    audio = _ragged([batch.audio for batch in batches], [batch.audio_mask for batch in batches])
    text = _ragged([batch.text for batch in batches], [batch.text_mask for batch in batches])
    return replace(split, audio=audio, text=text)


def _ragged(values: list[Tensor], masks: list[Tensor]) -> Ragged:
    """Padded features and masks of consecutive utterances, without the padding."""
    rows = torch.cat([value[mask] for value, mask in zip(values, masks, strict=True)])
    return Ragged(rows, _offsets(torch.cat([mask.sum(1) for mask in masks]).cpu()))


def load_split(
    features: Features,
    name: str,
    *,
    modalities: Modalities,
    audio_frames: int,
    target: Target = "label",
    device: torch.device | str = "cpu",
) -> Split:
    """The split `name` on `device`; rows of other splits are not read.

    Audio of more than `audio_frames` frames is average-pooled to as many. A modality that `modalities` withholds is
    empty in every utterance. `target` is what there must be to learn or to score.

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
        conversations=_conversation_offsets(conversation_ids),
        audio=_load_modality(features, "audio", first, last, modalities, audio_frames, device),
        text=_load_modality(features, "text", first, last, modalities, None, device),
    )
    _check_truth(split, target, features.path)
    return split


def _check_truth(split: Split, target: Target, path: Path) -> None:
    tasks = [find_task("label", 0), find_task("score", 0)]
    found = [task.target for task in tasks if bool(task.counted(task.truth(split)).any())]
    if target not in found:
        other = f", or set train.target to {found[0]}, which some have" if found else ""
        mend = f"give some of them one in the data set{other}"
        raise FeatureError(f"{path}: no utterance of the {split.name} split has a {target}; {mend}")


def withhold(split: Split, modalities: Modalities) -> Split:
    """The same split, sharing its rows, in which a modality that `modalities` withholds is empty everywhere."""
    audio = split.audio if modalities in ("both", "audio") else _without_rows(split.audio)
    text = split.text if modalities in ("both", "text") else _without_rows(split.text)
    return replace(split, audio=audio, text=text)


def _without_rows(ragged: Ragged) -> Ragged:
    return Ragged(ragged.values[:0], torch.zeros_like(ragged.offsets))


def _conversation_offsets(conversation_ids: list[str]) -> Tensor:
    ids = np.array(conversation_ids)
    starts = np.flatnonzero(ids[1:] != ids[:-1]) + 1
    return torch.from_numpy(np.concatenate([[0], starts, [len(ids)]]).astype(np.int64))


def _load_modality(
    features: Features,
    name: str,
    first: int,
    last: int,
    modalities: Modalities,
    limit: int | None,
    device: torch.device | str,
) -> Ragged:
    part: Part | None = getattr(features, name)
    if modalities not in ("both", name):
        shape = (1,) if part is None else part.values.shape[1:]
        empty = Ragged(torch.zeros(0, *shape), torch.zeros(last - first + 1, dtype=torch.int64))
        return Ragged(empty.values.to(device), empty.offsets)
    if part is None:
        other = "text" if name == "audio" else "audio"
        raise FeatureError(
            f"{features.path}: holds no {name}, but model.modalities is '{modalities}'; "
            f"set model.modalities to '{other}', or join {name} features in"
        )
    return load_rows(part, first, last, limit, device)


def load_rows(part: Part, first: int, last: int, limit: int | None, device: torch.device | str) -> Ragged:
    """Utterances `first` .. `last` of `part` on `device`, those of more than `limit` rows average-pooled to it."""
    offsets = part.offsets[first : last + 1]
    values = part.values[offsets[0] : offsets[-1]]
    lengths = torch.from_numpy(np.diff(offsets))
    if limit is not None and bool((lengths > limit).any()):
        ragged = pool(values, lengths, limit)
    else:
        ragged = Ragged(torch.from_numpy(np.array(values)), _offsets(lengths))
    return Ragged(ragged.values.to(device), ragged.offsets)


def drop_rows(modality: Ragged, missing: Tensor) -> Ragged:
    """`modality` without the rows of the utterances that `missing` (utterances,) marks."""
    lengths = modality.offsets.diff()
    kept = torch.repeat_interleave(~missing, lengths).to(modality.values.device)
    return Ragged(modality.values[kept], _offsets(torch.where(missing, 0, lengths)))


def pool(values: np.ndarray, lengths: Tensor, limit: int) -> Ragged:
    """Average-pool utterances of more than `limit` rows to `limit`; shorter ones stay as they are.

    An utterance of n rows is cut at floor(j n / limit) into contiguous segments whose lengths differ by at most one,
    and every row is in exactly one of them.

    Args:
        values: (rows, dim) or (rows, layers, dim), float16 or float32.
        lengths: (utterances,) rows of each utterance.
        limit: most rows an utterance may have afterwards.
    """
    pooled = lengths.clamp(max=limit)
    utterance = torch.repeat_interleave(torch.arange(len(lengths)), pooled)
    offsets = _offsets(pooled)
    segment = torch.arange(len(utterance)) - offsets[utterance]
    starts = _offsets(lengths)[utterance] + segment * lengths[utterance] // pooled[utterance]
    bounds = torch.cat([starts, torch.tensor([len(values)])])
    chunks = [
        _segment_means(values, bounds[first : first + POOLED_ROWS + 1]) for first in range(0, len(starts), POOLED_ROWS)
    ]
    none = torch.from_numpy(np.array(values[:0]))  # where no utterance has a row
    return Ragged(torch.cat([none, *chunks]), offsets)


def _segment_means(values: np.ndarray, bounds: Tensor) -> Tensor:
    """Means of the rows between neighbouring `bounds` (segments + 1,): (segments, dim) or (segments, layers, dim)."""
    rows = torch.from_numpy(np.array(values[int(bounds[0]) : int(bounds[-1])]))
    flat = rows.flatten(1).float()
    # a bag of embeddings is torch's fastest mean over contiguous rows, 20 times faster than numpy's reduceat
    means = F.embedding_bag(torch.arange(len(flat)), flat, bounds[:-1] - bounds[0], mode="mean")
    return means.view(-1, *rows.shape[1:]).to(rows.dtype)


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
