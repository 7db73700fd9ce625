"""What an ablation table says where names or numbers are unusual."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fusion.ablation.table_files import describe_run, table_csv, table_md, table_tex
from fusion.objective import Interval
from tests.fusion.ablation.test_ablation import made_comparison


def test_a_row_name_never_becomes_an_option_of_the_line_above_it(tmp_path: Path) -> None:
    comparison = made_comparison(tmp_path, {"base": 0.8, '"[no gate]"': 0.7, '"* starred"': 0.7})
    lines = table_tex(comparison, describe_run(comparison, None)).splitlines()
    assert not [line for line in lines if line.startswith(("[", "*"))]
    assert any(line.startswith("{}[no gate] & 0.") for line in lines)
    assert any(line.startswith("{}* starred & 0.") for line in lines)


def test_the_latex_table_says_what_is_bold(tmp_path: Path) -> None:
    comparison = made_comparison(tmp_path, {"base": 0.8, "worse": 0.4})
    table = table_tex(comparison, describe_run(comparison, None))
    assert "% mean and standard deviation over seeds, 95% intervals" in table
    assert "% a difference is bold where its corrected p is below 0.05." in table


@pytest.mark.parametrize("write", [table_md, table_tex, table_csv])
def test_a_difference_that_rounds_to_zero_has_no_minus(tmp_path: Path, write: Callable[..., str]) -> None:
    comparison = made_comparison(tmp_path, {"base": 0.8, "alike": 0.8})
    row = comparison.rows[1]
    assert row.difference
    change = replace(row.difference, mean=-1e-9, interval=Interval(-1e-9, 0.1))
    rows = [comparison.rows[0], replace(row, difference=change, mean=-1e-9), *comparison.rows[2:]]
    made = replace(comparison, rows=rows)
    table = write(made, describe_run(made, None))
    assert not re.search(r"-0\.0+\b(?!\.)", table)
    assert write is table_csv or "+0.000" in table
