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
utterances is to take chance for merit. Where validation is smaller still, and train has ten groups or more, train is
cross-validated, too, and both count as one (docs/protocol.md has numbers). Once all of that is chosen, every model is
fitted again on train and validation together, since nothing is left to validate. Answers and scores on validation come
from the models before that last fit.
What the models that are held against it cannot see is withheld here too.

Axes: utterances, columns, classes.
"""

import copy
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # see `fusion.objective.statistics`
from threadpoolctl import threadpool_limits

from fusion.data import Split
from fusion.layers import STATISTICS, LinearWeights
from fusion.linear.columns import LinearColumns, Pooled, Variant, linear_variants, pool_split
from fusion.objective import METRICS, Task, compute_all, find_task
from fusion.params import Recipe
from pipeline.store import whole_groups

# scikit-learn's C, from the strongest penalty to the weakest
STRENGTHS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0, 10.0)
MORE_OF_SCORES = (100.0, 1000.0)  # of scores, which may be exact sums of the columns
# weaker penalties are left out after so many in a row that make validation no more likely than the best one, if the
# last of them makes an utterance less likely by so much log-likelihood
PATIENCE, HOPELESS = 3, 0.1
LIKELIHOOD = 0.1  # its weight in the choice, beside a metric
FEW, FOLDS = 64, 5  # where fewer utterances validate, train is cross-validated, too, in so many folds ..
GROUPS = 10  # .. if so many conversations, or speakers, or more can be held out of it
TEMPERATURE = 8.0  # of the weights of variants: divides log-likelihoods of the utterances that chose penalties, too
LEAST = 1e-12  # added to a mean squared error, of which the logarithm is taken
NAMED = 0.2  # of the weights, from which on a variant is named beside the heaviest one
ITERATIONS = 1000  # of a fit, which goes on from the one before
TOLERANCE = 1e-5  # of the gradient; with 1e-3 fits of more columns than utterances end where they begin
SOLVED = 1e-9  # of a ridge regression, relative
UNSEEN = -10.0  # the logit of a label that train lacks
KEPT = 16  # linear references that a process remembers


@dataclass(frozen=True, eq=False)
class Fitted:
    """The linear model of one variant, at the strength that validation chose."""

    variant: Variant
    strength: float  # C of the logistic regression, 1 / alpha of the ridge regression
    answers: np.ndarray  # on validation: probabilities (utterances, classes), or scores (utterances, 1), float64
    scores: Mapping[str, float]  # of these, by metric
    likelihood: float  # of the labels (scores) that chose it, its logarithm; of all together
    parameters: int
    columns: LinearColumns
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

    Both splits hold what `recipe` gives its models. The same splits give the same numbers, with any number of threads;
    the last few references are remembered.
    """
    task, model = find_task(recipe.train.target, classes), recipe.model
    settings = model.looks_at, model.direction, model.standardise, recipe.train.metric, recipe.loss.class_weights, task
    with threadpool_limits(1):  # whose number changes the order of sums
        splits = [_Pool(pool_split(split), task.truth(split).numpy()) for split in (train, validation)]
        held_out = _hold_out(train, validation, task)
        key = _digest(repr(settings), [*(array for one in splits for array in one.arrays()), *held_out])
        if key not in _kept:
            _kept[key] = _fit(splits[0], splits[1], held_out, task, recipe)
            for oldest in list(_kept)[:-KEPT]:
                del _kept[oldest]
    return _kept[key]


_kept: dict[bytes, LinearReference] = {}


@dataclass(frozen=True, eq=False)
class _Pool:
    """A split as this module looks at it."""

    pooled: Pooled
    truth: np.ndarray

    def arrays(self) -> list[np.ndarray]:
        """All of its numbers, always in one order."""
        by_name = (self.pooled.present, self.pooled.means, self.pooled.deviations)
        return [self.truth, self.pooled.conversations, *(one[name] for one in by_name for name in sorted(one))]


def _digest(settings: str, arrays: Sequence[np.ndarray]) -> bytes:
    digest = hashlib.sha256(settings.encode())
    for array in arrays:
        digest.update(repr((array.shape, array.dtype)).encode() + np.ascontiguousarray(array).tobytes())
    return digest.digest()


def _hold_out(train: Split, validation: Split, task: Task) -> list[np.ndarray]:
    """Where few utterances validate, folds of train, (utterances,) boolean each: what is held out of it.

    Whole conversations are, or whole speakers where validation has other speakers than train; nothing is where these
    are fewer than ten groups, of which folds say too little.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    truth = task.truth(train).numpy()
    counted = np.flatnonzero(task.counted(truth))
    if task.counted(task.truth(validation)).sum() >= FEW or not len(counted):
        return []
    names = train.speaker_names, validation.speaker_names
    others = all(map(all, names)) and not {*names[0]} & {*names[1]}
    groups = whole_groups(train.conversation_ids, train.speaker_names if others else None)
    number_of = {name: number for number, group in enumerate(groups) for name in group}
    numbers = np.array([number_of[name] for name in train.conversation_ids])[counted]
    labels = truth[counted] if task.target == "label" else np.zeros(len(counted), np.int64)
    folds = min(FOLDS, int(np.unique(labels, return_counts=True)[1].max()))
    if folds < 2 or len(np.unique(numbers)) < GROUPS:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of labels that are in fewer folds
        parts = [out for _, out in StratifiedGroupKFold(folds).split(labels, labels, numbers)]
    return [np.isin(np.arange(len(truth)), counted[out]) for out in parts if len(out)]


def _fit(
    train: _Pool, validation: _Pool, held_out: Sequence[np.ndarray], task: Task, recipe: Recipe
) -> LinearReference:
    fitted = []
    for variant in linear_variants(train.pooled, recipe):
        columns = LinearColumns(variant, train.pooled, recipe.model.direction, recipe.model.standardise == "robust")
        given = [columns.of(one.pooled) for one in (train, validation)]
        basis = _Basis(np.concatenate(given))
        known, beside = _Known(basis(given[0]), train.truth), _Known(basis(given[1]), validation.truth)
        path = _path([(known, beside), *known.parted(held_out)], task, recipe)
        best = int(np.argmax(_merits(path)))  # of equals the first, which has the strongest penalty
        step = path[best]
        final = basis.back(_fit_again(step, known.with_rows(beside), task))
        size = int(np.size(final.coef_) + np.size(final.intercept_)) if hasattr(final, "coef_") else 0
        scores = _scores(task, validation.truth, step.answers)
        likelihood = _together(step, task)
        on_train = basis.back(step.model)
        fitted.append(Fitted(variant, step.strength, step.answers, scores, likelihood, size, columns, on_train, final))
    shares = scipy.special.softmax(np.array([one.likelihood for one in fitted]) / TEMPERATURE)
    answers = _mean_answer([one.answers for one in fitted], shares, task)
    return LinearReference(task, fitted, shares, answers, _scores(task, validation.truth, answers))


class _Basis:
    """Coordinates in the space that rows (utterances, columns) span, if there are at most half as many as columns.

    A penalised regression gives no weight to directions outside of it, and finds the same model with fewer weights.
    """

    def __init__(self, rows: np.ndarray) -> None:
        few = 2 * len(rows) <= rows.shape[1]
        self.axes = np.linalg.qr(rows.T.astype(np.float64))[0].astype(np.float32) if few else None

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """(utterances, columns) -> (utterances, dimensions), or as they are."""
        return rows if self.axes is None else rows @ self.axes

    def back(self, model: Any) -> Any:
        """What learned from such rows, as if it had learned from the columns."""
        if self.axes is not None and hasattr(model, "coef_"):
            model.coef_, model.n_features_in_ = model.coef_ @ self.axes.T, len(self.axes)
        return model


@dataclass(frozen=True, eq=False)
class _Known:
    """A split as a linear model is given it."""

    columns: np.ndarray
    truth: np.ndarray

    def with_rows(self, other: "_Known") -> "_Known":
        """Those of both."""
        return _Known(*map(np.concatenate, ((self.columns, other.columns), (self.truth, other.truth))))

    def parted(self, held_out: Sequence[np.ndarray]) -> list[tuple["_Known", "_Known"]]:
        """What is left to learn from, and what is held out, of each fold."""
        return [(self.where(~out), self.where(out)) for out in held_out]

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
    score: float  # of validation and the folds of train, by `train.metric`, turned so that more is better
    likelihood: float  # of the same, on average
    count: int  # of the same, how many utterances are counted


def _path(parts: Sequence[tuple[_Known, _Known]], task: Task, recipe: Recipe) -> list[_Step]:
    """From the strongest penalty on; of labels each from where the one before ended, until weaker ones are hopeless.

    Args:
        parts: pairs of what a model learns from and what it then answers: train and validation, and each fold of train.
    """
    learned = [known.counted(task) for known, _ in parts]
    models, steps = [_make_model(known.truth, task, recipe) for known in learned], list[_Step]()
    truth = np.concatenate([asked.truth for _, asked in parts])
    count = int(task.counted(truth).sum())
    for strength in STRENGTHS + MORE_OF_SCORES * (task.target == "score"):
        answers = []
        for model, known, (_, asked) in zip(models, learned, parts, strict=True):
            _learn(model, known, strength)
            answers.append(_answer(model, asked.columns, task))
        every = np.concatenate(answers)
        score, likelihood = _score(task, truth, every, recipe.train.metric), _likelihood(task, truth, every)
        steps.append(_Step(strength, copy.deepcopy(models[0]), answers[0], score, likelihood, count))
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


def _together(step: _Step, task: Task) -> float:
    """The log-likelihood of all counted utterances together; errors of scores count as normal."""
    if task.target == "score":
        return -step.count / 2 * float(np.log(LEAST - step.likelihood))
    return step.count * step.likelihood


def _score(task: Task, truth: np.ndarray, answers: np.ndarray, metric: str) -> float:
    return _scores(task, truth, answers)[metric] * (-1 if METRICS[metric].lower_is_better else 1)


def _scores(task: Task, truth: np.ndarray, answers: np.ndarray) -> Mapping[str, float]:
    """Every metric of the task, by name."""
    return compute_all(task.metrics, task.tally(truth, answers, np.array([0, len(truth)]))[0])


def _merits(path: Sequence[_Step]) -> list[float]:
    """What the choice goes by, see the module; rounded, so that no rounding of sums decides."""
    padded = np.pad(np.array([one.score for one in path]), 1, mode="edge")
    smooth = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    merits: list[float] = (smooth + LIKELIHOOD * np.array([one.likelihood for one in path])).round(9).tolist()
    return merits
