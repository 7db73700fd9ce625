"""Probabilities that mean what they say: temperature scaling, fitted on validation (Guo et al., arXiv 1706.04599).

Networks that are trained to the end are surer than they are right. One number, the temperature, divides what they say
before the softmax: no label changes, only how sure the model is of it. Of probabilities p that is
p ** (1 / temperature), made to sum to 1 again, so that it needs nothing but the answers.

Axes: utterances, classes.
"""

from dataclasses import dataclass

import numpy as np
import scipy  # see `fusion.objective.statistics`

RANGE = (0.05, 20.0)  # of temperatures: where a model is never wrong on validation, there would be no end to them
BINS = 15  # of confidence, as in the paper
TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Calibration:
    """A temperature, and the expected calibration error on the utterances it was fitted on or tried on."""

    temperature: float
    before: float
    after: float


def calibrate(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (utterances, classes) at `temperature`: above 1 less sure, below 1 surer; 1 changes no bit."""
    if temperature == 1:
        return probabilities
    logits = np.log(np.maximum(probabilities, TINY)) / temperature
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature, within `RANGE`, that makes the labels most likely.

    Args:
        probabilities: (utterances, classes).
        labels: (utterances,), none missing.
    """

    def surprise(log_temperature: float) -> float:
        chances = calibrate(probabilities, float(np.exp(log_temperature)))[np.arange(len(labels)), labels]
        return float(-np.log(np.maximum(chances, TINY)).mean())

    found = scipy.optimize.minimize_scalar(surprise, bounds=np.log(RANGE), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """How far confidence is from accuracy: its mean over bins of equal width, weighted by their utterances.

    0 is perfect. Few utterances make it larger than it is by chance: compare it on one set only.

    Args:
        probabilities: (utterances, classes).
        labels: (utterances,), none missing.
    """
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(labels))


def measure_calibration(probabilities: np.ndarray, labels: np.ndarray, temperature: float) -> Calibration:
    """The error before and after `temperature`, which `probabilities` (utterances, classes) are without."""
    after = expected_calibration_error(calibrate(probabilities, temperature), labels)
    return Calibration(temperature, expected_calibration_error(probabilities, labels), after)
