"""The usual way to train on cached features: what most projects write, with this project's model and loss.

A `Dataset` opens the HDF5 files for every item, a conversation, reads its rows, which lie side by side, and hands out
float32, of long audio as it is stored or pooled as this project does; a `DataLoader` collates a random batch of them to
the longest utterance; the loop below learns and validates. Frozen stages of HCAM run in every batch, as frozen parts
mostly do.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from fusion.batch import Batch
from fusion.data import number_speakers, pool
from fusion.models import Sizes, Stage, build_model
from fusion.objective import Task, compute_all, find_task
from fusion.params import Recipe
from fusion.training.stage import Criterion
from measures.epochs import EpochTime, Training, count_padding
from pipeline.store import Features, Part


@dataclass(frozen=True, eq=False)
class Item:
    """A conversation: (rows, dim) float32 of each of its utterances."""

    audio: list[Tensor]
    text: list[Tensor]
    labels: Tensor
    scores: Tensor
    speakers: Tensor


class Conversations(Dataset[Item]):
    """The conversations of a split; every item opens the files, so that worker processes may be forked."""

    def __init__(self, features: Features, split: str, audio_frames: int | None) -> None:
        table = features.utterances
        here = np.flatnonzero(np.array(table.splits) == split)
        names = np.array(table.conversations)[here]
        cuts = np.flatnonzero(names[1:] != names[:-1]) + 1
        self.bounds = [(int(group[0]), int(group[-1]) + 1) for group in np.split(here, cuts)]
        self.features, self.audio_frames = features, audio_frames
        self.labels = torch.from_numpy(np.array(table.labels[here], np.int64))
        self.speakers = number_speakers(names.tolist(), [table.speakers[row] for row in here])
        self.first = int(here[0])

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, index: int) -> Item:
        first, last = self.bounds[index]
        table = self.features.utterances
        assert self.features.audio is not None
        assert self.features.text is not None
        return Item(
            audio=_read(self.features.audio, first, last, self.audio_frames),
            text=_read(self.features.text, first, last, None),
            labels=self.labels[first - self.first : last - self.first],
            scores=torch.from_numpy(np.array(table.scores[first:last], np.float32)),
            speakers=self.speakers[first - self.first : last - self.first],
        )


def _read(part: Part, first: int, last: int, limit: int | None) -> list[Tensor]:
    offsets = part.offsets[first : last + 1]
    with h5py.File(part.path, "r") as file:
        values = file["values"][offsets[0] : offsets[-1]]
    lengths = torch.from_numpy(np.diff(offsets))
    if limit is None or not bool((lengths > limit).any()):
        return list(torch.from_numpy(values).float().split(lengths.tolist()))
    pooled = pool(values, lengths, limit)
    return list(pooled.values.float().split(pooled.lengths.tolist()))


def collate(items: Sequence[Item]) -> Batch:
    """Every utterance padded to the longest of the batch."""
    audio, audio_mask = _pad([rows for item in items for rows in item.audio])
    text, text_mask = _pad([rows for item in items for rows in item.text])
    turns = torch.tensor([len(item.audio) for item in items])
    return Batch.padded(
        audio=audio,
        audio_mask=audio_mask,
        text=text,
        text_mask=text_mask,
        labels=torch.cat([item.labels for item in items]),
        scores=torch.cat([item.scores for item in items]),
        turn_mask=torch.arange(int(turns.max())) < turns[:, None],
        speakers=torch.cat([item.speakers for item in items]),
    )


def _pad(utterances: list[Tensor]) -> tuple[Tensor, Tensor]:
    padded = pad_sequence(utterances, batch_first=True)
    lengths = torch.tensor([len(rows) for rows in utterances])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def train_usual(
    features: Features, recipe: Recipe, seed: int, device: str, workers: int, padding: bool, audio_frames: int | None
) -> Training:
    """All epochs of the recipe, without early stopping; each branch of a stage keeps the weights of its best one.

    Audio of more than `audio_frames` is pooled as this project does; None leaves it as it is stored.
    """
    torch.manual_seed(seed)
    task = find_task(recipe.train.target, len(features.label_names))
    loaders = [
        DataLoader(
            Conversations(features, split, audio_frames),
            batch_size=recipe.train.conversations,
            shuffle=split == "train",
            collate_fn=collate,
            num_workers=workers,
            pin_memory=device != "cpu",
            persistent_workers=workers > 0,
        )
        for split in ("train", "validation")
    ]
    model: Any = _model(features, recipe, task.outputs).to(device)
    train: Any = loaders[0].dataset
    labels: Any = SimpleNamespace(labels=train.labels, device=torch.device(device))  # what a criterion asks of a split
    criterion = Criterion(recipe.loss, labels, task)
    loaded, epochs = time.perf_counter(), list[EpochTime]()
    for stage in model.stages():
        epochs += _train_stage(stage, loaders, recipe, criterion, task, device)
    _, scores = _score(model, loaders[1], task, device)
    return Training(
        epochs=epochs,
        loaded=loaded,
        score=scores["fused"][recipe.train.metric],
        utterances=len(train.labels),
        padding=count_padding(loaders[0]) if padding else None,
    )


def _model(features: Features, recipe: Recipe, classes: int) -> nn.Module:
    assert features.audio is not None
    assert features.text is not None
    sizes = Sizes(audio_dim=features.audio.values.shape[-1], text_dim=features.text.values.shape[-1], classes=classes)
    model: nn.Module = build_model(recipe.model.name, recipe.own, sizes, recipe.wanted)
    return model


def _train_stage(
    stage: Stage, loaders: Sequence[DataLoader[Item]], recipe: Recipe, criterion: Criterion, task: Task, device: str
) -> list[EpochTime]:
    params, epochs = recipe.train, list[EpochTime]()
    weights = [weight for branch in stage.branches.values() for weight in branch.parameters()]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[params.optimizer]
    optimizer = kind(weights, lr=params.learning_rate, weight_decay=params.weight_decay)
    best: dict[str, tuple[float, dict[str, Tensor]]] = {}
    for _ in range(params.epochs):
        began = time.perf_counter()
        stage.module.train()
        for batch in loaders[0]:
            given = _encode(stage, batch.to(device))
            loss = criterion(stage.module(given), given, stage.branches).total
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, params.gradient_clip)
            optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()
        learned, scores = _score(stage.module, loaders[1], task, device, stage)
        for name, branch in stage.branches.items():
            score = scores[name][params.metric]
            if name not in best or score > best[name][0]:
                best[name] = score, copy.deepcopy(branch.state_dict())
        epochs.append(EpochTime(stage.name, began, learned, time.perf_counter(), scores["fused"][params.metric]))
    for name, branch in stage.branches.items():
        branch.load_state_dict(best[name][1])
    stage.module.eval()
    return epochs


@torch.no_grad()
def _score(
    module: Any, loader: DataLoader[Item], task: Task, device: str, stage: Stage | None = None
) -> tuple[float, dict[str, Any]]:
    """When it began, and every metric of every head on validation."""
    began = time.perf_counter()
    module.eval()
    outputs, truths = [], []
    for batch in loader:
        given = _encode(stage, batch.to(device))
        outputs.append({head: logits.cpu() for head, logits in module(given).heads().items() if "." not in head})
        truths.append(task.truth(batch))
    truth = torch.cat(truths).numpy()
    scores = {}
    for head in outputs[0]:
        answers = task.answers(torch.cat([output[head] for output in outputs]))
        scores[head] = compute_all(task.metrics, task.tally(truth, answers, np.array([0, len(truth)])).sum(0))
    return began, scores


@torch.no_grad()
def _encode(stage: Stage | None, batch: Batch) -> Batch:
    return stage.encode(batch) if stage is not None and stage.encode is not None else batch
