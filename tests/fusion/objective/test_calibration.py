"""Temperatures make probabilities honest and change no label."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from fusion.objective import calibrate
from fusion.objective.calibration import RANGE, expected_calibration_error, fit_temperature, measure_calibration

CLASSES, UTTERANCES = 4, 20_000


def honest() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels that are drawn by them."""
    random = np.random.default_rng(0)
    probabilities = softmax(2 * random.standard_normal((UTTERANCES, CLASSES)), axis=-1)
    labels = (random.random(UTTERANCES)[:, None] > probabilities.cumsum(-1)).sum(-1)
    return probabilities, labels.clip(max=CLASSES - 1)


@pytest.mark.parametrize("made", [0.4, 1.0, 3.0])
def test_the_temperature_that_was_made_is_found(made: float) -> None:
    probabilities, labels = honest()
    overconfident = calibrate(probabilities, 1 / made)
    found = measure_calibration(overconfident, labels, fit_temperature(overconfident, labels))
    assert found.temperature == pytest.approx(made, rel=0.03)
    assert found.after < 0.02
    assert made == 1 or found.before > 0.08


def test_a_temperature_divides_what_the_softmax_takes() -> None:
    logits = torch.randn(50, CLASSES, generator=torch.Generator().manual_seed(0)).double()
    np.testing.assert_allclose(
        calibrate(logits.softmax(-1).numpy(), 1.7), (logits / 1.7).softmax(-1).numpy(), rtol=1e-12
    )


def test_no_temperature_changes_what_is_most_probable() -> None:
    probabilities, _ = honest()
    for temperature in (*RANGE, 1.3):
        assert (calibrate(probabilities, temperature).argmax(-1) == probabilities.argmax(-1)).all()


def test_certainty_stays_finite() -> None:
    certain = np.eye(CLASSES)
    labels = np.arange(CLASSES)
    assert fit_temperature(certain, labels) >= RANGE[0]
    wrong = fit_temperature(certain, labels[::-1].copy())
    assert wrong == pytest.approx(RANGE[1], rel=1e-3)
    assert np.isfinite(calibrate(certain, wrong)).all()


def test_the_error_is_the_gap_between_confidence_and_accuracy() -> None:
    half = np.tile([0.9, 0.1], (10, 1))
    assert expected_calibration_error(half, np.array([0] * 5 + [1] * 5)) == pytest.approx(0.4)
    assert expected_calibration_error(half, np.zeros(10, int)) == pytest.approx(0.1)
    two_bins = np.array([[0.9, 0.1], [0.55, 0.45]])
    assert expected_calibration_error(two_bins, np.array([1, 0])) == pytest.approx((0.9 + 0.45) / 2)
    assert expected_calibration_error(np.eye(2), np.arange(2)) == 0
