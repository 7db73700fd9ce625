"""The linear reference: what a linear model makes of the same features, which any fusion model has to beat.

Logistic regression for labels and ridge regression for scores (scikit-learn), on a few numbers of each utterance: the
mean and the standard deviation over its frames and over its tokens, of every column of the features, standardised and
limited by the train split alone, as the inputs of models are. An utterance without a modality has the average of train
there. `neighbours` adds the means of the turn before and, where `model.direction` is both, of the turn after.

Every model is fitted on train; validation chooses the strength of the penalty of each variant (audio, text, both; with
and without neighbours). The choice goes by `train.metric`, of which the mean with that of the next stronger and the
next weaker penalty counts, plus a tenth of the mean log-likelihood (of scores: minus the mean squared error), since a
metric of so few utterances wavers. *The* linear reference is the mean of the logits (scores) of all variants, each
weighted by how likely it makes validation, which is again a linear model: to take the one that does best on some eighty
utterances is to take chance for merit (docs/protocol.md has numbers). Once all of that is chosen, every model is fitted
again on train and validation together, since nothing is left to validate. Answers and scores on validation come from
the models before that last fit. What the models that are held against it cannot see is withheld here too.

Axes: utterances, columns, classes.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # see `fusion.objective.statistics`
import torch
from threadpoolctl import threadpool_limits

from fusion.data import Chosen, Ragged, Split
from fusion.inference import score_answers
from fusion.layers import STATISTICS, LinearWeights
from fusion.objective import METRICS, Task, find_task
from fusion.params import Recipe
from pipeline.store import plain_scale, robust_scale

# scikit-learn's C, from the strongest penalty to the weakest
STRENGTHS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0, 10.0)
MORE_OF_SCORES = (100.0, 1000.0)  # of scores, which may be exact sums of the columns
# weaker penalties are left out after so many in a row that make validation no more likely than the best one, if the
# last of them makes an utterance less likely by so much log-likelihood
PATIENCE, HOPELESS = 3, 0.1
LIKELIHOOD = 0.1  # its weight in the choice, beside a metric
TEMPERATURE = (
    8.0  # of the weights of variants: divides their log-likelihoods on validation, where penalties were chosen, too
)
LEAST = 1e-12  # added to a mean squared error, of which the logarithm is taken
NAMED = 0.2  # of the weights, from which on a variant is named beside the heaviest one
ITERATIONS = 1000  # of a fit, which goes on from the one before
TOLERANCE = 1e-5  # of the gradient; with 1e-3 fits of more columns than utterances end where they begin
SOLVED = 1e-9  # of a ridge regression, relative
GATHERED = 1024  # rows of frames or tokens, as stored, at a time
UNSEEN = -10.0  # the logit of a label that train lacks
CONSTANT = 1e-6  # of the largest number in a column: one that varies less is constant but for rounding


@dataclass(frozen=True, eq=False)
class Pooled:
    """Mean and standard deviation over the rows of each utterance of one split, by modality."""

    present: Mapping[str, np.ndarray]  # (utterances,) boolean
    means: Mapping[str, np.ndarray]  # (utterances, dim) float32, 0 where it is not present
    deviations: Mapping[str, np.ndarray]
    conversations: np.ndarray  # (conversations + 1,): conversation i owns the utterances [i] .. [i + 1]


@dataclass(frozen=True)
class Variant:
    """What a linear model looks at."""

    modalities: tuple[str, ...]
    neighbours: bool

    @property
    def name(self) -> str:
        """In tables."""
        looked_at = " + ".join(self.modalities)
        return f"{looked_at}, with neighbours" if self.neighbours else looked_at


def pool_split(split: Split) -> Pooled:
    """Mean and standard deviation of what each utterance of `split` has, in memory of (utterances, dim) numbers."""
    present, means, deviations = {}, {}, {}
    for name, rows in (("audio", split.audio), ("text", split.text)):
        present[name] = (rows.lengths > 0).numpy()
        means[name], deviations[name] = _moments(rows)
    return Pooled(present, means, deviations, split.conversations.numpy())


@torch.no_grad()
def _moments(rows: Ragged) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the rows of each utterance, (utterances, dim) each; of encoder layers, the mean.

    Utterances of like length are padded together, so that padding costs little.
    """
    found = torch.zeros(2, len(rows.lengths), rows.dim)
    order = rows.lengths.argsort(stable=True)
    order = order[rows.lengths[order] > 0]
    for piece in _pieces(order, rows.stored):
        lengths = rows.lengths[piece].to(rows.device)[:, None, None]
        values, mask = rows.gather(Chosen(piece, piece.to(rows.device)), int(lengths.max()))
        values = values.mean(2) if values.dim() == 4 else values
        mean = values.sum(1, keepdim=True) / lengths
        square = ((values - mean) ** 2 * mask[:, :, None]).sum(1) / lengths[:, 0]
        found[:, piece] = torch.stack([mean[:, 0], square.sqrt()]).cpu()
    return found[0].numpy(), found[1].numpy()


def _pieces(order: torch.Tensor, lengths: torch.Tensor) -> Iterator[torch.Tensor]:
    """Utterances in `order` of their lengths, about `GATHERED` rows together."""
    piece = lengths[order].cumsum(0) // GATHERED
    if len(order):
        yield from order.split(piece.unique_consecutive(return_counts=True)[1].tolist())


class _Columns:
    """What the linear model of one variant is given, standardised by the utterances of train that have it."""

    def __init__(self, variant: Variant, train: Pooled, direction: str, robust: bool) -> None:
        self.variant, self.both_sides = variant, direction == "both"
        self.scales = {
            name: tuple(_Scale(found[name][train.present[name]], robust) for found in (train.means, train.deviations))
            for name in variant.modalities
        }

    @property
    def neighbours(self) -> int:
        """On how many sides it looks at the next turn."""
        return (1 + self.both_sides) * self.variant.neighbours

    def of(self, pooled: Pooled) -> np.ndarray:
        """(utterances, columns) float32, 0 where there is nothing."""
        blocks = []
        for name, (of_means, of_deviations) in self.scales.items():
            means = of_means(pooled.means[name], pooled.present[name])
            blocks += [means, of_deviations(pooled.deviations[name], pooled.present[name])]
            if self.variant.neighbours:
                blocks += _neighbours(means, pooled.conversations, self.both_sides)
        columns = np.concatenate(blocks, axis=1)
        return columns if columns.shape[1] else np.zeros((len(columns), 1), np.float32)


class _Scale:
    """Columns (utterances, dim) of train to mean 0 and deviation 1; those that are constant there are left out.

    Elsewhere, what lies far beyond train is put on a limit; if it is to be `robust`, in train as well. A number that is
    not finite counts as missing.
    """

    def __init__(self, train: np.ndarray, robust: bool) -> None:
        finite = np.isfinite(train)
        values = np.where(finite, train, 0).astype(np.float64)
        count = np.maximum(finite.sum(0), 1)
        mean = values.sum(0) / count
        spread = np.sqrt((np.where(finite, values - mean, 0) ** 2).sum(0) / count)
        self.kept = spread > CONSTANT * np.abs(values).max(0, initial=0)
        least = np.where(finite, train, np.inf).min(0, initial=np.inf)
        most = np.where(finite, train, -np.inf).max(0, initial=-np.inf)
        found = plain_scale(mean, spread, least, most)
        if robust and len(train):
            found = robust_scale(np.where(finite, train, mean), spread)
        self.mean, self.spread = found.centre[self.kept], found.spread[self.kept]
        self.limits = found.low[self.kept], found.high[self.kept]

    def __call__(self, values: np.ndarray, present: np.ndarray) -> np.ndarray:
        own = values[:, self.kept]
        scaled = (np.clip(own, *self.limits) - self.mean) / self.spread
        return np.where(present[:, None] & np.isfinite(own), scaled, 0).astype(np.float32)


def _neighbours(means: np.ndarray, conversations: np.ndarray, both_sides: bool) -> list[np.ndarray]:
    """`means` of the turn before and, with `both_sides`, of the turn after; 0 where there is none."""
    before, after = np.zeros_like(means), np.zeros_like(means)
    follows = np.ones(len(means), bool)
    follows[conversations[:-1]] = False  # the first turns
    turns = np.flatnonzero(follows)
    before[turns], after[turns - 1] = means[turns - 1], means[turns]
    return [before, after] if both_sides else [before]


def _variants(train: Pooled, recipe: Recipe) -> list[Variant]:
    """From the simplest on: what the model looks at and some utterance of train has, each alone and together."""
    seen = [name for name in recipe.model.looks_at if train.present[name].any()] or [recipe.model.looks_at[0]]
    several = bool((np.diff(train.conversations) > 1).any())
    sets = [(name,) for name in seen] + ([tuple(seen)] if len(seen) > 1 else [])
    return [Variant(looked_at, neighbours) for looked_at in sets for neighbours in (False, True)[: 1 + several]]


@dataclass(frozen=True, eq=False)
class Fitted:
    """The linear model of one variant, at the strength that validation chose."""

    variant: Variant
    strength: float  # C of the logistic regression, 1 / alpha of the ridge regression
    answers: np.ndarray  # on validation: probabilities (utterances, classes), or scores (utterances, 1), float64
    scores: Mapping[str, float]  # of these, by metric
    likelihood: float  # of the labels (scores) of validation under these, its logarithm; of all together
    parameters: int
    columns: _Columns
    on_train: Any  # of scikit-learn, fitted on train, whose `answers` these are
    model: Any  # the same, fitted on train and validation

    @property
    def name(self) -> str:
        """In tables: what it looks at, and its penalty as scikit-learn has it."""
        penalty = f"alpha {1 / self.strength:.6g}" if hasattr(self.model, "alpha") else f"C {self.strength:g}"
        return f"{self.variant.name} ({penalty})"

    def answer(self, pooled: Pooled, task: Task) -> np.ndarray:
        """Of every utterance, as `answers`."""
        return _answer(self.model, self.columns.of(pooled), task)

    def weights(self, task: Task, on_train: bool = False) -> LinearWeights:
        """`model`, or the one that was fitted `on_train`, on features as they are stored: for a model's linear path."""
        blocks = {
            name: [means, deviations, *[means, means][: self.columns.neighbours]]
            for name, (means, deviations) in self.columns.scales.items()
        }
        count = sum(len(scale.mean) for scales in blocks.values() for scale in scales)
        model = self.on_train if on_train else self.model
        bias, rows = _coefficients(model, task, count)  # (outputs,), (outputs, columns)
        taken, centres, limits, weights = 0, {}, {}, {}
        for name, scales in blocks.items():
            means = scales[0]
            centres[name] = np.zeros((len(STATISTICS), len(means.kept)), np.float32)
            limits[name] = np.full((*centres[name].shape, 2), [-np.inf, np.inf])
            weights[name] = np.zeros((len(STATISTICS), len(bias), len(means.kept)), np.float32)
            for statistic, scale in enumerate(scales):
                width = len(scale.mean)
                centres[name][statistic, scale.kept] = scale.mean
                limits[name][statistic, scale.kept] = np.stack(scale.limits, axis=1)
                weights[name][statistic][:, scale.kept] = rows[:, taken : taken + width] / scale.spread
                taken += width
        return LinearWeights(bias.astype(np.float32), centres, limits, weights)


@dataclass(frozen=True, eq=False)
class LinearReference:
    """Linear models of all variants, in the order of their names in tables, and their weighted mean: *the* reference.

    Attributes:
        shares: (variants,), the weight of each, summing to 1.
        answers: of the mean on validation, as those of `Fitted`.
        scores: of these, by metric.
    """

    task: Task
    fitted: Sequence[Fitted]
    shares: np.ndarray
    answers: np.ndarray
    scores: Mapping[str, float]

    @property
    def name(self) -> str:
        """In tables: what it is the mean of."""
        if len(self.fitted) == 1:
            return self.fitted[0].name
        heaviest = sorted(zip(self.shares, self.fitted, strict=True), key=lambda pair: -pair[0])
        named = [pair for pair in heaviest if pair[0] >= NAMED] or heaviest[:1]
        most = "; ".join(f"{100 * share:.0f} % {one.variant.name}" for share, one in named)
        return f"mean of {len(self.fitted)} linear models: {most}"

    @property
    def parameters(self) -> int:
        """Those of the largest variant, which looks at all that the others do."""
        return max(one.parameters for one in self.fitted)

    def weights(self, on_train: bool = False) -> LinearWeights:
        """The mean on features as they are stored: what a fusion model takes along beside its deep path.

        With `on_train`, the mean of the models that were fitted on train alone and can still be judged by validation.
        """
        every = [one.weights(self.task, on_train) for one in self.fitted]
        found = every[-1]  # of the variant that looks at all that the others do
        return LinearWeights(
            np.einsum("v,vo->o", self.shares, np.stack([one.bias for one in every])).astype(np.float32),
            found.centres,
            found.limits,
            {name: self._mean(name, [one.weights for one in every]) for name in found.weights},
        )

    def answer(self, split: Split) -> np.ndarray:
        """Of the mean: probabilities (utterances, classes), or scores (utterances, 1), float64."""
        return self.join(self.answer_all(split))

    def answer_all(self, split: Split) -> dict[str, np.ndarray]:
        """The same of each variant, by its name."""
        pooled = pool_split(split)
        return {one.variant.name: one.answer(pooled, self.task) for one in self.fitted}

    def join(self, answers: Mapping[str, np.ndarray]) -> np.ndarray:
        """What `answer` gives, of what `answer_all` gave."""
        return _mean_answer(list(answers.values()), self.shares, self.task)

    def _mean(self, modality: str, weights: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        given = [share * one[modality] for share, one in zip(self.shares, weights, strict=True) if modality in one]
        return np.stack(given).sum(axis=0).astype(np.float32)


def _mean_answer(answers: Sequence[np.ndarray], shares: np.ndarray, task: Task) -> np.ndarray:
    """Of answers (utterances, outputs) each: the softmax of the mean of logits, or the mean of scores."""
    stacked = np.stack(answers)
    if task.target == "score":
        return np.einsum("v,vno->no", shares, stacked)
    logits = np.einsum("v,vno->no", shares, np.log(np.maximum(stacked, np.finfo(float).tiny)))
    found: np.ndarray = scipy.special.softmax(logits, axis=1)
    return found


def fit_linear(train: Split, validation: Split, recipe: Recipe, classes: int) -> LinearReference:
    """Fit the linear reference of models of `recipe` on `train`, weigh it on `validation`, then fit it on both.

    Both splits hold what `recipe` gives its models. The same splits give the same numbers, with any number of threads.
    """
    with threadpool_limits(1):  # whose number changes the order of sums
        return _fit(train, validation, recipe, classes)


def _fit(train: Split, validation: Split, recipe: Recipe, classes: int) -> LinearReference:
    task = find_task(recipe.train.target, classes)
    learned, chosen_on = pool_split(train), pool_split(validation)
    fitted = []
    for variant in _variants(learned, recipe):
        columns = _Columns(variant, learned, recipe.model.direction, recipe.model.standardise == "robust")
        known = _Known(columns.of(learned), task.truth(train).numpy())
        beside = _Known(columns.of(chosen_on), task.truth(validation).numpy())
        path = _path(known, beside, task, recipe)
        merits = _merits(path)
        best = int(np.argmax(merits))  # of equals the first, which has the strongest penalty
        step = path[best]
        size = int(np.size(step.model.coef_) + np.size(step.model.intercept_)) if hasattr(step.model, "coef_") else 0
        scores = score_answers(task, validation, step.answers)
        likelihood = _together(step, int(task.counted(task.truth(validation)).sum()), task)
        final = _fit_again(step, known.with_rows(beside), task)
        fitted.append(
            Fitted(variant, step.strength, step.answers, scores, likelihood, size, columns, step.model, final)
        )
    shares = scipy.special.softmax(np.array([one.likelihood for one in fitted]) / TEMPERATURE)
    answers = _mean_answer([one.answers for one in fitted], shares, task)
    return LinearReference(task, fitted, shares, answers, score_answers(task, validation, answers))


@dataclass(frozen=True, eq=False)
class _Known:
    """A split as a linear model is given it."""

    columns: np.ndarray
    truth: np.ndarray

    def with_rows(self, other: "_Known") -> "_Known":
        """Those of both."""
        return _Known(*map(np.concatenate, ((self.columns, other.columns), (self.truth, other.truth))))

    def counted(self, task: Task) -> "_Known":
        """Of utterances with a label, or a score."""
        return self.where(task.counted(self.truth))

    def where(self, chosen: np.ndarray) -> "_Known":
        """Of the chosen utterances, (utterances,) boolean."""
        return _Known(self.columns[chosen], self.truth[chosen])


@dataclass(frozen=True, eq=False)
class _Step:
    """One strength of a path."""

    strength: float
    model: Any
    answers: np.ndarray  # on validation
    score: float  # of these, by `train.metric`, turned so that more is better
    likelihood: float


def _path(train: _Known, validation: _Known, task: Task, recipe: Recipe) -> list[_Step]:
    """From the strongest penalty on; of labels each from where the one before ended, until weaker ones are hopeless."""
    known = train.counted(task)
    model, steps = _make_model(known.truth, task, recipe), list[_Step]()
    for strength in STRENGTHS + MORE_OF_SCORES * (task.target == "score"):
        _learn(model, known, strength)
        answers = _answer(model, validation.columns, task)
        score = _score(task, validation.truth, answers, recipe.train.metric)
        steps.append(
            _Step(strength, copy.deepcopy(model), answers, score, _likelihood(task, validation.truth, answers))
        )
        best = max(range(len(steps)), key=lambda index: steps[index].likelihood)
        lost = steps[best].likelihood - steps[-1].likelihood
        if task.target == "label" and len(steps) - 1 - best >= PATIENCE and lost > HOPELESS:
            break
    return steps


def _fit_again(step: _Step, given: _Known, task: Task) -> Any:
    """The model of `step` on all that is `given`, going on from there; of labels, those that it knows."""
    known, model = given.counted(task), copy.deepcopy(step.model)
    if task.target == "label":
        known = known.where(np.isin(known.truth, model.classes_))
    _learn(model, known, step.strength)
    return model


def _learn(model: Any, known: _Known, strength: float) -> None:
    from sklearn.exceptions import ConvergenceWarning

    if hasattr(model, "C"):
        model.C = strength
    elif hasattr(model, "alpha"):
        model.alpha = 1 / strength
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # after `ITERATIONS` it is good enough
        model.fit(known.columns, known.truth)


def _make_model(truth: np.ndarray, task: Task, recipe: Recipe) -> Any:
    """Of scikit-learn, to learn `truth`, in which nothing is missing."""
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression, Ridge

    if task.target == "score":
        return Ridge(solver="lsqr", tol=SOLVED, max_iter=ITERATIONS)
    if len(np.unique(truth)) == 1:
        return DummyClassifier(strategy="prior")
    weights = "balanced" if recipe.loss.class_weights == "balanced" else None
    return LogisticRegression(tol=TOLERANCE, max_iter=ITERATIONS, warm_start=True, class_weight=weights)


def _coefficients(model: Any, task: Task, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Bias (outputs,) and weights (outputs, columns); of a label that train lacks the bias is low, `UNSEEN`."""
    if task.target == "score":
        return np.atleast_1d(model.intercept_), np.atleast_2d(model.coef_)
    bias = np.full(task.outputs, UNSEEN)
    if not hasattr(model, "coef_"):  # train has one label
        bias[model.classes_] = 0
        return bias, np.zeros((task.outputs, columns))
    rows = np.zeros((task.outputs, columns))
    single = len(model.classes_) == 2  # scikit-learn then has one row, for the second of them
    rows[model.classes_] = np.concatenate([-model.coef_, model.coef_]) / 2 if single else model.coef_
    bias[model.classes_] = np.concatenate([-model.intercept_, model.intercept_]) / 2 if single else model.intercept_
    return bias, rows


def _answer(model: Any, columns: np.ndarray, task: Task) -> np.ndarray:
    """Probabilities (utterances, classes), 0 of a label that train lacks; or scores (utterances, 1); float64."""
    if task.target == "score":
        return np.asarray(model.predict(columns), np.float64)[:, None]
    answers = np.zeros((len(columns), task.outputs))
    answers[:, model.classes_] = model.predict_proba(columns.astype(np.float64))
    return answers


def _likelihood(task: Task, truth: np.ndarray, answers: np.ndarray) -> float:
    """Mean log-likelihood of labels; of scores minus the mean squared error."""
    counted = task.counted(truth)
    if task.target == "score":
        return -float(np.mean((truth[counted] - answers[counted, 0]) ** 2))
    chances = answers[counted, truth[counted]]
    return float(np.log(np.maximum(chances, np.finfo(float).tiny)).mean())


def _together(step: _Step, utterances: int, task: Task) -> float:
    """The log-likelihood of so many `utterances` together; errors of scores count as normal."""
    if task.target == "score":
        return -utterances / 2 * float(np.log(LEAST - step.likelihood))
    return utterances * step.likelihood


def _score(task: Task, truth: np.ndarray, answers: np.ndarray, metric: str) -> float:
    tally = task.tally(truth, answers, np.array([0, len(truth)]))[0]
    return float(METRICS[metric](tally)) * (-1 if METRICS[metric].lower_is_better else 1)


def _merits(path: Sequence[_Step]) -> list[float]:
    """What the choice goes by, see the module; rounded, so that no rounding of sums decides."""
    padded = np.pad(np.array([one.score for one in path]), 1, mode="edge")
    smooth = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    merits: list[float] = (smooth + LIKELIHOOD * np.array([one.likelihood for one in path])).round(9).tolist()
    return merits
