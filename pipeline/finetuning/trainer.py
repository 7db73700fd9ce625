"""Hugging Face's Trainer, epoch by epoch: chosen on validation, stopped early, and resumable without a trace.

After every epoch a checkpoint lies in the work folder. It counts if a mark holds the hash of all its files, so a kill
at any moment leaves the one before, and a damaged one is made again. The last and the best are kept. What decides when
to stop and which epoch is best is read from the Trainer's own history, so a resumed run decides as an undisturbed one
does.
"""

import copy
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from pipeline.encoders import hash_files, shuffled_batches
from pipeline.errors import EncoderError, StoreError, reason_and_fix
from pipeline.finetuning.examples import METRICS, Example, scores
from pipeline.finetuning.learners import Learner
from pipeline.params import FinetuneParams
from pipeline.settings import deterministic, full_float32, ran_out_of_memory, repeatably, sync_folder

log = logging.getLogger(__name__)

MARK = "whole"  # file in a checkpoint whose bytes are all on disk: the hash of the others


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to."""

    number: int  # from 1
    loss: float  # mean on train
    scores: Mapping[str, float]  # on validation


class Examples(Dataset[Example]):
    """What a learner trains or is scored on."""

    def __init__(self, inputs: Sequence[Tensor], labels: Sequence[int]) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Example:
        return Example(self.inputs[index], self.labels[index])


def learn(
    learner: Learner, train: Examples, validation: Examples, params: FinetuneParams, work: Path, device: str
) -> list[Epoch]:
    """Train `learner.model`, which ends with the weights of the best epoch; returns all epochs.

    A checkpoint in `work` is taken up: whoever calls makes sure that it is one of this very run.

    Raises:
        EncoderError: the scores are not finite, or a batch exceeds the memory.
        StoreError: the disk is full.
    """
    steps = -(-len(train) // params.batch_size)
    begun = _last_whole(work, params, steps)
    history = _history(_state(begun)) if begun else []
    start = None if device == "cpu" else copy.deepcopy(learner.model.state_dict())

    def train_on(strict: bool) -> Any:
        if start and not strict:
            learner.model.load_state_dict(start)
            learner.model.zero_grad()
        with reproducible(device, strict), _memory(params), _same_config(learner.model.config):
            trainer = _EpochTrainer(
                order=_Order(train, params),
                keep=lambda state: _kept(state, params, steps),
                model=learner.model,
                args=_arguments(params, work, device, steps),
                data_collator=learner.collate,
                train_dataset=train,
                eval_dataset=validation,
                compute_loss_func=LabelLoss(train.labels, params.class_weights),
                compute_metrics=_compute_metrics,
                callbacks=[_Patience(params), _Progress(params.metric)],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train(resume_from_checkpoint=str(begun) if begun else None)
        return trainer.state.log_history

    if not _finished(history, params):
        history = _history(repeatably(train_on, "fine-tuning"))
    best = best_epoch(history, params.metric)
    learner.model.to("cpu").load_state_dict(load_file(_checkpoint(work, best.number, steps) / "model.safetensors"))
    return history


def best_epoch(history: Sequence[Epoch], metric: str) -> Epoch:
    """The first epoch with the highest score."""
    return max(history, key=lambda epoch: (epoch.scores[metric], -epoch.number))


def _finished(history: Sequence[Epoch], params: FinetuneParams) -> bool:
    if not history:
        return False
    waited = len(history) - best_epoch(history, params.metric).number
    return len(history) >= params.epochs or waited >= params.patience


def _history(log: Sequence[Mapping[str, float]]) -> list[Epoch]:
    """The epochs of a Trainer's log, which has one entry for the loss and one for the scores of each."""
    losses = [entry["loss"] for entry in log if "loss" in entry]
    scored = [entry for entry in log if f"eval_{METRICS[0]}" in entry]
    return [
        Epoch(number, loss, {name: entry[f"eval_{name}"] for name in METRICS})
        for number, (loss, entry) in enumerate(zip(losses, scored, strict=True), start=1)
    ]


def _checkpoint(work: Path, epoch: int, steps: int) -> Path:
    return work / f"checkpoint-{epoch * steps}"


def _kept(state: Any, params: FinetuneParams, steps: int) -> set[str]:
    """Names of the checkpoints that a run still needs: the last and the best."""
    best = best_epoch(_history(state.log_history), params.metric)
    return {f"checkpoint-{state.global_step}", f"checkpoint-{best.number * steps}"}


def _last_whole(work: Path, params: FinetuneParams, steps: int) -> Path | None:
    """The last checkpoint that is whole, and whose best epoch's is too; those that are cut or damaged are removed."""
    for folder in work.glob("checkpoint-*"):
        mark = folder / MARK
        if not mark.exists() or mark.read_bytes().decode(errors="replace") != hash_files(folder, MARK):
            log.warning("%s: cut short or damaged; fine-tuning goes on from an earlier epoch", folder)
            shutil.rmtree(folder)
    for folder in sorted(work.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2])):
        best = best_epoch(_history(_state(folder)), params.metric)
        if _checkpoint(work, best.number, steps).exists():
            return folder
    return None


def _state(checkpoint: Path) -> list[dict[str, float]]:
    log: list[dict[str, float]] = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))[
        "log_history"
    ]
    return log


def _arguments(params: FinetuneParams, work: Path, device: str, steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=params.epochs,
        per_device_train_batch_size=params.batch_size,
        per_device_eval_batch_size=params.batch_size,
        learning_rate=params.learning_rate,
        weight_decay=params.weight_decay,
        warmup_steps=int(params.warmup_share * steps * params.epochs),
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        label_names=["labels"],
        remove_unused_columns=False,
        seed=params.seed,
        use_cpu=device == "cpu",
        bf16=params.precision == "bfloat16",
        dataloader_pin_memory=device != "cpu",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )


class _EpochTrainer(Trainer):
    """Trainer with batches in our order, and checkpoints that are whole or do not count."""

    def __init__(self, order: "_Order", keep: Any, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._order, self._keep = order, keep
        # checkpoints are taken up by the model's own names, not by those of the file that it began with
        model: Any = self.model
        model.save_pretrained = partial(model.save_pretrained, save_original_format=False)

    def _get_train_sampler(self, *arguments: Any) -> Sampler:
        return self._order

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        work = Path(str(self.args.output_dir))
        folder = work / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(*arguments, **options)
            _mark_whole(folder)
        except (OSError, RuntimeError, SafetensorError) as error:  # whichever library found the disk full
            shutil.rmtree(folder, ignore_errors=True)  # what did not fit should not go on filling the disk
            reason, fix = reason_and_fix(error, "make room")
            raise StoreError(
                f"{folder}: cannot be written ({reason[:200]}); {fix} and run again, finished epochs are kept"
            ) from None
        kept = self._keep(self.state)
        for other in work.glob("checkpoint-*"):
            if other.name not in kept:
                shutil.rmtree(other)


def _mark_whole(folder: Path) -> None:
    (folder / MARK).write_text(hash_files(folder, MARK))
    sync_folder(folder)


class _Order(Sampler[int]):
    """The order of the examples: batches of like length, another one each epoch, the same in every run."""

    def __init__(self, train: Examples, params: FinetuneParams) -> None:
        self._lengths = [len(item) for item in train.inputs]
        self._size, self._seed, self._epoch = params.batch_size, params.seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch, also after it took up a checkpoint."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        for batch in shuffled_batches(self._lengths, self._size, seed=(self._seed, self._epoch)):
            yield from batch


class LabelLoss:
    """Cross-entropy in float32, each class weighted by its rarity where that is asked for."""

    def __init__(self, labels: Sequence[int], class_weights: str) -> None:
        counts = torch.bincount(torch.tensor(labels)).float()
        self._weights = counts.sum() / len(counts) / counts if class_weights == "balanced" else None

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        logits = outputs["logits"].float()
        weights = None if self._weights is None else self._weights.to(logits.device)
        return nn.functional.cross_entropy(logits, labels, weights)


def _compute_metrics(prediction: Any) -> Mapping[str, float]:
    if not np.isfinite(prediction.predictions).all():
        raise EncoderError("fine-tuning: the model's scores are not finite any more; lower finetune.learning_rate")
    return scores(prediction.label_ids, prediction.predictions.argmax(axis=1))


class _Patience(TrainerCallback):
    """Stops when the validation score has not risen for long enough."""

    def __init__(self, params: FinetuneParams) -> None:
        self._params = params

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if _finished(_history(state.log_history), self._params):
            control.should_training_stop = True


class _Progress(TrainerCallback):
    """A bar over all steps, silent when not on a terminal."""

    def __init__(self, metric: str) -> None:
        self._metric = metric

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="fine-tune", unit="step", disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.set_postfix({self._metric: state.log_history[-1][f"eval_{self._metric}"]})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()


@contextmanager
def reproducible(device: str, strict: bool) -> Iterator[None]:
    """Inside, float32 is float32, kernels of a GPU repeat themselves, and transformers is quiet."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with full_float32(), nullcontext() if device == "cpu" else deterministic(strict):
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)


@contextmanager
def _same_config(config: Any) -> Iterator[None]:
    """Take back what the Trainer sets in a model's configuration for its own use."""
    before = getattr(config, "use_cache", None)
    yield
    if before is not None:
        config.use_cache = before


@contextmanager
def _memory(params: FinetuneParams) -> Iterator[None]:
    """Say what to do where a batch does not fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        raise EncoderError(
            f"fine-tuning: a batch of {params.batch_size} exceeds the memory; lower finetune.batch_size, or "
            "finetune.max_seconds (audio) or finetune.max_tokens (text)"
        ) from None
