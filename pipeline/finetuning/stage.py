"""The command `pipeline-finetune`: manifest -> a folder with a fine-tuned encoder, which appears whole or not at all.

The work is done in `<output>.partial` beside the output, because DVC deletes the output before it runs the stage:

    models/encoders/audio.partial/fingerprint       of everything that decides the weights
    models/encoders/audio.partial/checkpoint-<n>/   the last epoch and the best one
    models/encoders/audio.partial/finished/         the encoder, renamed to the output when all of it is on disk
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.encoders import FINGERPRINT, LEARNED, NOTE, hash_files, read_learned
from pipeline.errors import EncoderError
from pipeline.finetuning.examples import METRICS, Chosen, Modality, choose, lay_down, majority
from pipeline.finetuning.folder import HEADING, check_replaceable, hand_over, is_there
from pipeline.manifest import Utterance, learned_key, read_manifest
from pipeline.media import Channels
from pipeline.params import AudioParams, FinetuneParams, TextParams
from pipeline.settings import closure_digest, sole_writer, write_whole

if TYPE_CHECKING:
    import torch

    from pipeline.finetuning.learners import Learner
    from pipeline.finetuning.trainer import Epoch


VERSION = 1  # raise it when a change alters the weights
CODE = ("pipeline.finetuning.stage:finetune_audio", "pipeline.finetuning.stage:finetune_text")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What is settled before the encoder is loaded."""

    params: AudioParams | TextParams
    modality: Modality
    chosen: Chosen
    output: Path
    work: Path
    device: str
    overwrite: bool


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    path: Path
    key: str  # of the parameter that can name the folder
    named: bool  # whether it does
    epochs: int
    best: "Epoch"
    metric: str
    floor: float  # of always predicting the majority of train
    chosen: Chosen

    def summary(self) -> str:
        """One line for the user."""
        left = {"without a label": self.chosen.unlabelled, f"without {self.key.split('.')[0]}": self.chosen.absent}
        out = ", ".join(f"{count} {reason}" for reason, count in left.items() if count)
        score = f"validation {self.metric} {self.best.scores[self.metric]:.3f} (majority {self.floor:.3f})"
        epochs = f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        return (
            f"{self.path}: {epochs}, best {self.best.number}, {score}; learned from "
            f"{len(self.chosen.train)} utterances, chosen on {len(self.chosen.validation)}"
            f"{f' ({out}, left out)' if out else ''}; "
            f"{f'{self.key} names it' if self.named else f'to encode with it, set {self.key}: {self.path}'}"
        )


@dataclass(frozen=True)
class Kept:
    """Nothing was done."""

    path: Path

    def summary(self) -> str:
        """One line for the user."""
        return f"{self.path}: this very encoder is there already; nothing is trained"


def finetune_audio(
    manifest: Path,
    output: Path,
    params: AudioParams,
    root: Path,
    channels: Channels,
    device: str = "auto",
    overwrite: bool = False,
) -> "Outcome | Kept":
    """Fine-tune `params.finetune.encoder` on the recordings under `root`; the folder `output` appears at the end.

    Raises:
        DataError: the manifest has too few labels, or a recording is not what it says.
        EncoderError: the encoder cannot be loaded, or does not learn as asked.
        StoreError, OSError: the folder cannot be written, or holds an encoder that was fine-tuned on something else or
            in another way, and `overwrite` is not given.
    """
    with _prepared(manifest, output, params, "audio", device, overwrite) as prepared:
        from pipeline.extraction import LOADERS, file_size
        from pipeline.finetuning.learners import load_speech_learner
        from pipeline.media import Clips

        chosen, work = prepared.chosen, prepared.work
        learner = load_speech_learner(params.finetune, chosen.labels, params.context)
        heard = (*chosen.train, *chosen.validation)
        inputs = [
            [u.id, u.split, u.label, u.content, u.audio, u.start, u.end, u.samples, file_size(root, u), channels]
            for u in heard
        ]
        with Clips(heard, root, channels, learner.sample_rate, work, params.decode_seconds) as clips:

            def load(utterance: Utterance) -> "torch.Tensor":
                return learner.prepare(clips.load(utterance))

            def read(utterances: Sequence[Utterance], name: str) -> "list[torch.Tensor]":
                return lay_down(work / f"{name}.f32", utterances, load, LOADERS)

            return _finetune(prepared, learner, read, inputs)


def finetune_text(
    manifest: Path, output: Path, params: TextParams, device: str = "auto", overwrite: bool = False
) -> "Outcome | Kept":
    """Fine-tune `params.finetune.encoder` on the transcripts, each with what `params` reads with it.

    Raises as `finetune_audio` does.
    """
    with _prepared(manifest, output, params, "text", device, overwrite) as prepared:
        from pipeline.encoders import TextContext, passages
        from pipeline.finetuning.learners import TextLearner

        chosen = prepared.chosen
        context = TextContext.of(dict(params))
        learner = TextLearner(params.finetune, chosen.labels, context)
        said = {passage.id: passage for passage in passages(read_manifest(manifest), context)}
        learned = [*chosen.train, *chosen.validation]
        inputs: list[list[Any]] = [[u.id, u.split, u.label, u.text] for u in learned]
        if any(context):
            inputs += [[one.own.speaker, one.past, one.future] for one in (said[u.id] for u in learned)]

        def read(utterances: Sequence[Utterance], name: str) -> "list[torch.Tensor]":
            return [learner.read(said[utterance.id]) for utterance in utterances]

        return _finetune(prepared, learner, read, inputs)


@contextmanager
def _prepared(
    manifest: Path, output: Path, params: AudioParams | TextParams, modality: Modality, device: str, overwrite: bool
) -> Iterator[Prepared]:
    check_replaceable(output)
    if Path(params.finetune.encoder).resolve() == output.resolve():
        raise EncoderError(
            f"{modality}.finetune.encoder {params.finetune.encoder} is the folder that fine-tuning writes; name the "
            "encoder where it should start"
        )
    chosen = choose(read_manifest(manifest), modality, str(manifest))
    from transformers import set_seed

    from pipeline.encoders import choose_device

    device = only_device(choose_device(device))
    set_seed(params.finetune.seed)  # of the classifier's first weights
    with sole_writer(output) as place:
        work = place.with_name(place.name + ".partial")
        work.mkdir(parents=True, exist_ok=True)
        yield Prepared(params, modality, chosen, output, work, device, overwrite)


def only_device(device: str) -> str:
    """`cuda:<n>` as the only GPU that this process sees: the Trainer takes all that it finds."""
    if device == "cpu":
        return device
    number = int(device.partition(":")[2] or 0)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[number] if visible != [""] else str(number)
    return "cuda"


def _finetune(
    prepared: Prepared,
    learner: "Learner",
    read: "Callable[[Sequence[Utterance], str], list[torch.Tensor]]",
    inputs: list[Any],
) -> "Outcome | Kept":
    from pipeline.finetuning.learners import check_precision
    from pipeline.finetuning.trainer import Examples, best_epoch, learn

    settings, modality, chosen = prepared.params.finetune, prepared.modality, prepared.chosen
    output, work, device = prepared.output, prepared.work, prepared.device
    fingerprint = _fingerprint(learner, inputs, settings, device)
    if is_there(output, fingerprint, prepared.overwrite):
        return Kept(output)
    _take_up(work, fingerprint)
    train, validation = (
        Examples(read(utterances, name), chosen.classes(utterances))
        for name, utterances in (("train", chosen.train), ("validation", chosen.validation))
    )
    if settings.precision == "bfloat16":
        check_precision(learner, device, f"{modality}.finetune.precision")
    history = learn(learner, train, validation, settings, work, device)
    best = best_epoch(history, settings.metric)
    floor = majority(np.array(train.labels), np.array(validation.labels))
    finished = work / "finished"
    shutil.rmtree(finished, ignore_errors=True)
    learner.save(finished)
    learned = {str(learned_key(utterance, modality)) for utterance in (*chosen.train, *chosen.validation)}
    lines = sorted(learned | read_learned(settings.encoder))
    (finished / LEARNED).write_text("\n".join([*lines, ""]), encoding="utf-8")
    (finished / FINGERPRINT).write_text(f"{fingerprint}\n{hash_files(finished, NOTE)}", encoding="utf-8")
    (finished / NOTE).write_text(_card(learner, chosen, history, best, settings, floor), encoding="utf-8")
    hand_over(finished, output, work)
    named = Path(prepared.params.encoder).resolve() == output.resolve()
    return Outcome(
        output, f"{modality}.encoder", named, len(history), best, settings.metric, floor[settings.metric], chosen
    )


def _fingerprint(learner: "Learner", inputs: list[Any], params: FinetuneParams, device: str) -> str:
    """Hash (hex) of everything that decides the weights, to the last bit."""
    import torch
    import transformers

    parts = [
        inputs,
        params.model_dump(mode="json"),
        learner.weights,
        learner.prepares,
        learner.model.config.to_json_string(),
        learner.source.revision,
        device,
        torch.__version__,
        transformers.__version__,
        VERSION,
        closure_digest(*CODE),
    ]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def _take_up(work: Path, fingerprint: str) -> None:
    """Keep the checkpoints in `work` if they are of this very run, else begin afresh."""
    file = work / "fingerprint"
    found = file.read_text(encoding="utf-8") if file.exists() else None
    if found == fingerprint:
        return
    if found is not None:
        log.warning("%s: of other parameters, utterances, weights or versions; fine-tuning starts afresh", work)
    for path in work.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_whole(file, fingerprint.encode())


def _card(
    learner: "Learner",
    chosen: Chosen,
    history: "Sequence[Epoch]",
    best: "Epoch",
    params: FinetuneParams,
    floor: Mapping[str, float],
) -> str:
    """What a reader of the folder should know; the same for the same run, without times and places."""
    settings = {**params.model_dump(mode="json", exclude={"encoder"}), **learner.reads}
    revision = f" at {learner.source.revision}" if learner.source.revision else ""
    rows: list[list[Any]] = [
        *([epoch.number, f"{epoch.loss:.4f}", *(f"{epoch.scores[name]:.3f}" for name in METRICS)] for epoch in history),
        ["majority", "", *(f"{floor[name]:.3f}" for name in METRICS)],
    ]
    table = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
    return (
        f"{HEADING}\n\n"
        f"`{learner.source.name}`{revision}, fine-tuned by erc-fusion to tell {', '.join(chosen.labels)} from "
        f"{len(chosen.train)} utterances of the train split; these are the weights of epoch {best.number}, the best on "
        f"{len(chosen.validation)} utterances of the validation split by {params.metric}. The test split was not read. "
        "The classifier is left out.\n\n"
        f"| epoch | train loss | {' | '.join(METRICS)} |\n|---|---|{'---|' * len(METRICS)}\n{table}\n\n"
        f"Settings: `{json.dumps(settings)}`\n"
    )
