"""Load a model, give it turns, get labels.

>>> from fusion.prediction import Predictor, Turn
>>> with Predictor.load("models/hbaf") as predictor:              # doctest: +SKIP
...     first, second = predictor.predict([Turn("We lost.", "a.wav"), Turn("Again?", "b.wav")])
...     print(second.label, second.probabilities["sadness"])
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from fusion.checkpoint import LoadedModel, check_encoders, load_model, load_seeds
from fusion.data import Split
from fusion.errors import FeatureError, RecordingError
from fusion.inference import Beyond, count_beyond, ensemble, predict
from fusion.objective import compute_all, find_task
from fusion.prediction.inputs import Heard, Known, cached_turns, load_cached, split_of
from fusion.prediction.recordings import Recordings, read_table, speak
from fusion.prediction.records import Prediction, Turn
from fusion.runtime import pick_device
from fusion.tables import number_of
from pipeline.settings import as_torch_starts, keep_generators
from pipeline.store import SPLITS, Features, read_features

if TYPE_CHECKING:
    from fusion.prediction.recordings import Spoken


__all__ = ["Conversation", "Prediction", "Predictor", "Turn"]

log = logging.getLogger(__name__)
_TURN = RLock()  # of the process, as an encoder may serve several predictors


def _renew() -> None:
    """In a process that was forked while another thread had the lock, nobody is there to release it."""
    global _TURN
    _TURN = RLock()


os.register_at_fork(after_in_child=_renew)


@contextmanager
def _taking_turns() -> Iterator[None]:
    """One thread at a time: an encoder knows of one batch only. Torch is as the models need it, whatever the caller's
    modes are.
    """
    with _TURN, as_torch_starts():
        yield


class Predictor:
    """Trained models of one or several seeds, whose answers are averaged, and their encoders; a context manager.

    Made by `Predictor.load`. Threads may share it: their calls take turns.

    Attributes:
        labels: that it tells, in the order of the classes; none where it tells scores.
        seeds: of the models.
        direction: `past` where a turn's answer depends on no later turn, `both` where it does.
    """

    def __init__(self, models: Sequence[LoadedModel], recordings: Recordings, device: torch.device) -> None:
        provenance = models[0].provenance
        self.labels, self.seeds = provenance.labels, tuple(model.provenance.seed for model in models)
        self.direction = "both" if recordings.future_turns else provenance.recipe.model.direction
        self._models, self._recordings, self._device = models, recordings, device
        self._recipe, self._stored = provenance.recipe, models[0].stored
        self._task = find_task(provenance.recipe.train.target, len(provenance.labels))
        self._named = set[str]()  # columns whose values far outside the range of train were warned of

    @classmethod
    @_taking_turns()
    @keep_generators()
    def load(
        cls,
        model: str | PathLike[str],
        device: str | torch.device = "auto",
        audio_encoder: str | PathLike[str] | None = None,
        text_encoder: str | PathLike[str] | None = None,
    ) -> "Predictor":
        """The model of a seed's folder, or of all seeds in a folder. Its encoders are loaded with the first turn.

        Args:
            model: models/<model>/seed-<n>, or models/<model>.
            device: auto, cpu, cuda or cuda:<n>.
            audio_encoder, text_encoder: the folders of encoders that are neither built in nor on the hub, such as
                fine-tuned ones; they have to be those that the model was trained with.

        Raises:
            ModelError: a folder is missing, incomplete or damaged, or seeds do not belong together.
            TrainingError: there is no such device.
        """
        folder, chosen = Path(model), pick_device(device)
        one = (folder / "config.json").is_file()
        models = [load_model(folder, chosen)] if one else load_seeds(folder, chosen)
        audio, text = (None if path is None else Path(path) for path in (audio_encoder, text_encoder))
        return cls(models, Recordings(models[0].provenance, audio, text, str(chosen)), chosen)

    def __enter__(self) -> "Predictor":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes that decode recordings, after a call that another thread is in."""
        with _TURN:
            self._recordings.close()

    @_taking_turns()
    def load_encoders(self) -> None:
        """Load the encoders now, rather than with the first turn; raises EncoderError where one is not available."""
        self._recordings.load()

    def predict(self, turns: Iterable[Turn]) -> list[Prediction]:
        """What is to be said of each turn, in the order given; those of one conversation are in its order.

        Raises:
            EncoderError: an encoder is not available, or a turn alone exceeds the memory.
            DataError, RecordingError: a turn is not what it must be, or nothing can be decoded here.
        """
        given, counts = _listed(turns), Counter[str]()
        spoken = []
        for turn in given:
            spoken.append(speak(turn, counts[turn.conversation]))
            counts[turn.conversation] += 1
        rank = {name: number for number, name in enumerate(counts)}
        order = sorted(range(len(given)), key=lambda index: rank[given[index].conversation])  # stable
        found = dict(zip(order, self._predict_spoken([spoken[index] for index in order]), strict=True))
        return [found[index] for index in range(len(given))]

    def predict_table(
        self,
        table: str | PathLike[str],
        root: str | PathLike[str] | None = None,
        params: str | PathLike[str] | None = None,
        overrides: Sequence[str] = (),
    ) -> list[Prediction]:
        """What is to be said of each turn of a table, conversation by conversation.

        Args:
            table: .csv, .tsv, .jsonl or .parquet, a row a turn; its other columns come along.
            root: the folder of its recordings; that of the table where it is None.
            params, overrides: of `dataset.columns`, where columns have names of their own.

        Raises:
            DataError: the table is missing or malformed; the line is named. Otherwise as `predict`.
        """
        path = Path(table)
        file = None if params is None else Path(params)
        turns = read_table(path, Path(root or path.parent), file, overrides)
        predicted = zip(turns, self._predict_spoken(turns), strict=True)
        return [replace(one, true=self._truth(turn), carried=turn.carried) for turn, one in predicted]

    def _truth(self, turn: "Spoken") -> str | float | None:
        """What the table says, in the terms of the models; a label that they do not know stays as it is."""
        if self.labels:
            return turn.label
        try:
            score = float(turn.score or "nan")
        except ValueError:
            return None
        return score if math.isfinite(score) else None

    def score(self, predictions: Sequence[Prediction]) -> str:
        """How well they agree with what the table says, in a line; "" where it says nothing."""
        told = [one for one in predictions if one.true is not None and (not self.labels or one.true in self.labels)]
        strange = Counter(str(one.true) for one in predictions if self.labels and one.true is not None)
        strange = Counter({label: count for label, count in strange.items() if label not in self.labels})
        parts = []
        if told:
            truth = np.array([self.labels.index(str(one.true)) if self.labels else one.true for one in told])
            answers = np.array([list(one.probabilities.values()) if self.labels else [one.score] for one in told])
            tally = self._task.tally(truth, answers, np.array([0, len(told)]))[0]
            scores = compute_all(self._task.metrics, tally)
            kind = "label" if self.labels else "score"
            shown = ", ".join(f"{name} {value:z.3f}" for name, value in scores.items())
            parts.append(
                f"{number_of(len(told), 'turn')} with a {kind} in the table: {shown} (no test score, if the models "
                "learned from some of them)"
            )
        if strange:
            named = ", ".join(f"'{label}' {count}" for label, count in strange.most_common(5))
            parts.append(f"labels that the model does not know are not scored: {named}")
        return "; ".join(parts)

    @_taking_turns()
    def predict_features(self, features: Features | str | PathLike[str], split: str | None = None) -> list[Prediction]:
        """What is to be said of each utterance of a feature file, in one split or in all of them.

        Raises:
            StoreError: the file is missing or damaged.
            ModelError: the features are of other encoders.
            FeatureError: they are of no modality that the model takes, or the split has no utterance.
        """
        if not isinstance(features, Features):
            features = read_features(Path(features))
        for model in self._models:
            check_encoders(model, features)
        there = [name for name in SPLITS if name in features.utterances.splits]
        split = None if split == "all" else split
        if split and split not in there:
            raise FeatureError(f"{features.path}: there is no split {split!r}; it has {', '.join(there)}")
        predictions, beyond = [], Beyond()
        for name in [split] if split else there:
            loaded = load_cached(features, name, self._recipe.model, self._stored, self._device)
            turns = cached_turns(features, loaded, self._recipe.model)
            predictions += self._predictions(turns, self.answer(loaded))
            beyond += self._beyond(loaded)
        _warn(beyond)
        return predictions

    def conversation(self, name: str = "0") -> "Conversation":
        """A conversation that goes on, to which turns are added as they are spoken."""
        return Conversation(name, self, self._recordings)

    @_taking_turns()
    def answer(self, split: Split) -> np.ndarray:
        """Calibrated probabilities (utterances, classes) or scores (utterances, 1), on average over the seeds."""
        answers = [predict(model.model, split, self._task) for model in self._models]
        return ensemble(answers, [model.provenance.temperature for model in self._models])

    @_taking_turns()
    def predict_heard(self, turns: Sequence[Heard]) -> list[Prediction]:
        """What is to be said of turns that are encoded, whole conversations one behind the other."""
        return self._predictions(turns, self.answer(split_of(turns, self._stored, self._device)))

    @_taking_turns()
    def _predict_spoken(self, turns: Sequence["Spoken"]) -> list[Prediction]:
        predictions, beyond = list[Prediction](), Beyond()
        with tqdm(total=len(turns), desc="predicting", unit="turn", disable=None) as bar:
            for heard in self._recordings.hear_all(turns):
                split = split_of(heard, self._stored, self._device)
                predictions += self._predictions(heard, self.answer(split))
                beyond += self._beyond(split)
                bar.update(len(heard))
        if not beyond.columns.keys() <= self._named:  # once for every column, however often a service calls
            self._named |= beyond.columns.keys()
            _warn(beyond)
        return predictions

    def _beyond(self, split: Split) -> Beyond:
        """Nothing where limits are so narrow that they are meant to be crossed."""
        robust = self._recipe.model.standardise == "robust"
        return Beyond() if robust else count_beyond(self._models[0].model, split)

    def _predictions(self, turns: Sequence[Known], answers: np.ndarray) -> list[Prediction]:
        """`answers` (turns, classes) or (turns, 1) in words."""
        return [self._prediction(turn, answer) for turn, answer in zip(turns, answers, strict=True)]

    def _prediction(self, turn: Known, answer: np.ndarray) -> Prediction:
        labels = self.labels
        return Prediction(
            conversation=turn.conversation,
            turn=turn.turn,
            speaker=turn.speaker,
            id=turn.id,
            label=labels[int(answer.argmax())] if labels else None,
            score=None if labels else float(answer[0]),
            probabilities=dict(zip(labels, answer.tolist(), strict=True)) if labels else {},
            status=turn.status,
            seeds=self.seeds,
        )


def _warn(beyond: Beyond) -> None:
    if sentence := str(beyond):
        log.warning("%s", sentence)


def _listed(turns: Iterable[Turn]) -> list[Turn]:
    if isinstance(turns, Turn):
        raise RecordingError("predict takes several turns, found one Turn; give it in a list: predict([turn])")
    if not isinstance(turns, Iterable):
        raise RecordingError(f"predict takes turns, found {turns!r}; expected a list of Turn(text, audio)")
    given = list(turns)
    for index, turn in enumerate(given):
        if not isinstance(turn, Turn):
            raise RecordingError(f"predict takes turns, found {turn!r} as turn {index}; expected Turn(text, audio)")
    return given


class Conversation:
    """A conversation that goes on; made by `Predictor.conversation`.

    Every turn is encoded once, and its words again where they are read with turns behind them (`text.future_turns`).
    The model then looks at the conversation up to there: with `direction` past that gives what it would say of this
    turn in the whole conversation; with both, later turns might have changed its mind.
    """

    def __init__(self, name: str, predictor: Predictor, recordings: Recordings) -> None:
        self._name, self._predictor, self._recordings = name, predictor, recordings
        self._said: list[Spoken] = []
        self._heard: list[Heard] = []

    def __len__(self) -> int:
        """How many turns there were."""
        return len(self._heard)

    @_taking_turns()
    def add(self, turn: Turn) -> Prediction:
        """What is to be said of the next turn; after an error, the conversation is as it was before.

        Raises:
            EncoderError, DataError, RecordingError: as `Predictor.predict`.
        """
        if not isinstance(turn, Turn):
            raise RecordingError(f"add takes a turn, found {turn!r}; expected Turn(text, audio)")
        spoken = speak(replace(turn, conversation=self._name), len(self._heard))
        heard = self._recordings.hear_next([*self._said, spoken], self._heard)
        prediction = self._predictor.predict_heard(heard)[-1]
        self._heard = heard
        self._said.append(replace(spoken, sound=None))  # its recording need not be kept
        return prediction
