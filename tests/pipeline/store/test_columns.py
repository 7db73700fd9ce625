"""What is measured of the columns of features, and which of them are called odd."""

from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import pytest

from pipeline.store import join_columns, measure_columns, robust_scale


def draw(rows: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Columns whose means and deviations differ by powers of ten."""
    random = np.random.default_rng(0)
    deviation = 10.0 ** random.uniform(-2, 2, shape)
    return (random.normal(0, 1, (rows, *shape)) * deviation + 20 * random.normal(0, 1, shape)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(7,), (3, 7)])
@pytest.mark.parametrize("cuts", [[], [1], [0, 400, 400, 999]])
def test_mean_and_deviation_are_those_of_all_rows_however_they_are_cut(
    dtype: Any, shape: tuple[int, ...], cuts: list[int]
) -> None:
    rows = draw(1000, *shape, dtype=dtype)
    found = reduce(join_columns, map(measure_columns, np.split(rows, cuts)))
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.deviation, exact.std(axis=0), rtol=1e-12)
    np.testing.assert_array_equal([found.least, found.most], [exact.min(axis=0), exact.max(axis=0)])


def test_the_largest_numbers_of_float16_do_not_overflow() -> None:
    rows = np.full((5000, 2), 65504, np.float16)
    rows[::2, 1] = -65504
    found = measure_columns(rows)
    assert found.mean.tolist() == [65504, 0]
    assert found.deviation.tolist() == [0, 65504]


def test_limits_are_the_range_widened_by_its_own_width_on_both_sides() -> None:
    scale = measure_columns(np.array([[0, -4], [1, 7], [1, -5]], np.float32)).scale
    np.testing.assert_allclose(scale.low, [-1, -17], atol=1e-4)
    np.testing.assert_allclose(scale.high, [2, 19], atol=1e-4)


def test_a_robust_scale_is_that_of_the_normal_distribution_below_the_outliers() -> None:
    rows = np.random.default_rng(0).normal(7, 2, (20_000, 3))
    rows[::20, 1] = 1e6
    rows[:15_000, 2] = 4
    scale = robust_scale(rows, rows.std(axis=0))
    np.testing.assert_allclose(scale.centre, [7, 7.1, 4], atol=0.1)
    np.testing.assert_allclose(scale.spread, [2, 2.1, rows[:, 2].std()], atol=0.1)  # of one number, the deviation
    np.testing.assert_allclose(scale.high - scale.centre, 5 * scale.spread)
    np.testing.assert_allclose(scale.centre - scale.low, 5 * scale.spread)


def test_columns_that_are_scaled_robustly_have_no_outliers() -> None:
    found = measure_columns(spoil(np.random.default_rng(0).normal(0, 1, (500, 12)), "outliers"))
    assert found.oddities()
    assert not replace(found, robust=robust_scale(np.zeros((2, 12)), found.deviation)).oddities()


def test_a_column_is_constant_where_float32_sees_one_number() -> None:
    rows = draw(100, 6).astype(np.float64)
    rows[:, 0] = 0
    rows[:, 1] = 1 / 3
    rows[:, 2] = 1e4 + 1e-4 * np.arange(100) / 100
    rows[:, 3] = 1e-3 * (np.arange(100) == 7)  # one row differs
    rows[:, 4] = 1e-35 * np.arange(100)  # its reciprocal is beyond float32
    assert measure_columns(rows).constant.tolist() == [True, True, True, False, True, False]


def spoil(rows: np.ndarray, what: str) -> np.ndarray:
    if "constant" in what:
        rows[:, 2:9] = 3
    if "not finite" in what:
        rows[5, 1], rows[6, 10] = np.nan, np.inf
    if "outliers" in what:
        rows[7, 3], rows[8, 11] = 300, -100
    if "scale" in what:
        rows[:, 0] *= 2e4
    return rows


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nothing", ""),
        ("constant", "of 12 columns: 7 constant (2, 3, 4, 5, 6, ...)"),
        ("not finite", "of 12 columns: 2 not finite (1, 10)"),
        ("scale", "of 12 columns: standard deviations from 0.96 (column 1) to 2e+04 (column 0)"),
        (
            "outliers",
            "of 12 columns: 2 with outliers (3, 11), up to 22 standard deviations away, which may hide the "
            "rest: model.standardise: robust may help where half of the values are not the same",
        ),
        ("constant, not finite", "of 12 columns: 7 constant (2, 3, 4, 5, 6, ...), 2 not finite (1, 10)"),
    ],
)
def test_odd_columns_are_counted_and_named(what: str, said: str) -> None:
    rows = spoil(np.random.default_rng(0).normal(0, 1, (500, 12)), what)
    assert measure_columns(rows).oddities() == said


@pytest.mark.parametrize("rows", [500, 100_000])
def test_a_column_of_two_numbers_has_no_outliers_however_rare_one_of_them_is(rows: int) -> None:
    values = np.random.default_rng(0).normal(0, 1, (rows, 4)).astype(np.float32)
    values[:, :3] = [0, 0.1, -7]
    values[[7, rows // 2], :3] = [[1, 0.7, 30]] * 2
    assert "outliers" not in measure_columns(values).oddities()
    values[7, 3] = 1e6
    assert "1 with outliers (3)" in measure_columns(values).oddities()


def test_columns_of_several_layers_are_named_by_layer_and_column() -> None:
    rows = np.random.default_rng(0).normal(0, 1, (50, 2, 4))
    rows[:, 1, 3] = 0
    assert measure_columns(rows).oddities() == "of 8 columns: 1 constant (1/3)"
