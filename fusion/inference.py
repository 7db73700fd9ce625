"""What trained models say of a split, and how well."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fusion.data import Split
from fusion.errors import FeatureError
from fusion.layers import Ensemble, Standardise
from fusion.objective import Task, calibrate, compute_all
from fusion.runtime import reproducible

CONVERSATIONS = 16  # at a time; predictions do not depend on it
NAMED = 5  # columns that a warning names


@dataclass(frozen=True)
class Beyond:
    """Values beyond the limits of a model's inputs (`fusion.layers.Standardise`)."""

    utterances: int = 0
    having: int = 0  # utterances that have such values
    columns: Counter[str] = field(default_factory=Counter)  # values by column, such as `audio 7`, of layers `text 2/7`

    def __add__(self, other: "Beyond") -> "Beyond":
        """Those of both."""
        return Beyond(self.utterances + other.utterances, self.having + other.having, self.columns + other.columns)

    def __str__(self) -> str:
        """A sentence for the user; nothing where there are none."""
        if not self.having:
            return ""
        named = ", ".join(f"{name} ({count})" for name, count in self.columns.most_common(NAMED))
        named += ", ..." * (len(self.columns) > NAMED)
        return (
            f"{self.having} of {self.utterances} utterances have values far outside the range that their column had in "
            f"train: {self.columns.total()} in {'column' if len(self.columns) == 1 else 'columns'} {named}. They are "
            "limited to three times that range; see whether these features were made as those of train, and whether "
            "the column varies there (pipeline-inspect)."
        )


def count_beyond(model: nn.Module, split: Split) -> Beyond:
    """What of `split` lies beyond the limits of `model`."""
    utterances, columns = 0, Counter[str]()
    for part in [one for one in model.modules() if isinstance(one, Standardise)]:
        for batch in split.batches(CONVERSATIONS):
            found = part.beyond(batch)
            utterances += int(torch.stack([counts.flatten(1).any(1) for counts in found.values()]).any(0).sum())
            for name, counts in found.items():
                total = counts.sum(0)
                for place in total.nonzero().tolist():
                    columns[f"{name} {'/'.join(map(str, place))}"] += int(total[tuple(place)])
    return Beyond(len(split.ids), utterances, columns)


def predict_heads(
    model: nn.Module, split: Split, task: Task, temperature: float | None = None, conversations: int = CONVERSATIONS
) -> dict[str, np.ndarray]:
    """Answers in float64, in the order of the split, by head (`Output.heads`).

    Probabilities (utterances, classes), or scores (utterances, 1). Those of the model as a whole, `fused`, are
    calibrated where there is a `temperature` (`Provenance.temperature`). So many `conversations` are read at a time.

    Raises:
        FeatureError: an answer is no finite number.
    """
    with reproducible(0, split.device), torch.inference_mode():
        outputs = [model.eval()(batch).heads() for batch in split.batches(conversations)]
    answers = {head: task.answers(torch.cat([output[head] for output in outputs])) for head in outputs[0]}
    for head, answer in answers.items():
        if len(odd := np.flatnonzero(~np.isfinite(answer).all(-1))):
            raise FeatureError(
                f"'{split.ids[odd[0]]}': the answer of the model ({head}) is no finite number, as of {len(odd)} of "
                f"{len(answer)} utterances; see which of their features are out of proportion with pipeline-inspect"
            )
    return answers if temperature is None else answers | {"fused": calibrate(answers["fused"], temperature)}


def predict(model: nn.Module, split: Split, task: Task) -> np.ndarray:
    """Answers of the model as a whole, as of `predict_heads`."""
    return predict_heads(model, split, task)["fused"]


def ensemble(answers: Sequence[np.ndarray], temperatures: Sequence[float | None]) -> np.ndarray:
    """What the models of several seeds say together: the mean of their answers to the same turns.

    Probabilities are calibrated first, each model's by its own temperature of validation (`Provenance.temperature`):
    one that is surer than it should be does not outvote the others. Scores, and heads without one, are taken as they
    are.
    """
    pairs = zip(answers, temperatures, strict=True)
    return np.mean([one if temperature is None else calibrate(one, temperature) for one, temperature in pairs], axis=0)


def split_tallies(task: Task, split: Split, answers: np.ndarray) -> np.ndarray:
    """Tallies (conversations, sums) of answers for all utterances of `split`."""
    return task.tally(task.truth(split).numpy(), answers, split.conversations.numpy())


def score_answers(task: Task, split: Split, answers: np.ndarray) -> Mapping[str, float]:
    """Every metric of the task, by name."""
    return compute_all(task.metrics, split_tallies(task, split, answers).sum(0))


def score_some(task: Task, split: Split, answers: np.ndarray, mask: Tensor) -> Mapping[str, float]:
    """The same over the utterances of `mask` (utterances,) alone; 0 where there are none."""
    truth, among = task.truth(split).numpy(), mask.numpy()
    return compute_all(task.metrics, task.tally(truth[among], answers[among], np.array([0, among.sum()]))[0])


def score_heads(task: Task, split: Split, answers: Mapping[str, np.ndarray]) -> dict[str, Mapping[str, float]]:
    """Every metric of what every head answers (`predict_heads`), by head and metric."""
    return {head: score_answers(task, split, answer) for head, answer in answers.items()}


def fit_ensembles(model: nn.Module, validation: Split, task: Task) -> None:
    """Choose the weights of the ensembles in `model`, if it has any, on the utterances of `validation` that count."""
    for part in model.modules():
        if isinstance(part, Ensemble):
            with reproducible(0, validation.device), torch.no_grad():
                members = [part.members(model(batch), batch) for batch in validation.batches(CONVERSATIONS)]
            truth = task.truth(validation)
            counted = task.counted(truth)
            said, present = (torch.cat(both).cpu()[counted] for both in zip(*members, strict=True))
            part.fit(said, present, truth[counted])
