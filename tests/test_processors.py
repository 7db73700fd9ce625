"""Exactness, self-check and the demo's score, on every processor that this machine can play: make processors."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processors
from tests.processors import LEVELS, Level, is_intel

ROOT = Path(__file__).parents[1]
FEWEST = 150  # tests that have to run and pass; were the marker lost from a file, nobody would see it otherwise
MKL_SAYS = {"amx": "(Intel(R) AMX)", "bfloat16": "bfloat16", "avx512": "AVX-512", "avx2": "AVX2"}  # the first that fits
every_level = pytest.mark.parametrize("level", [pytest.param(level, id=level.name) for level in LEVELS])


def skip_where_missing(level: Level) -> None:
    if missing := level.missing():
        pytest.skip(f"level {level.name} was not tried: this processor has no {', '.join(missing)}")


@pytest.mark.processors
@every_level
def test_arithmetic_holds_at(level: Level, tmp_path: Path) -> None:
    skip_where_missing(level)
    command = [sys.executable, "-m", "tests.processors", f"--basetemp={tmp_path / 'own'}", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment | level.variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert count_passed(done.stdout) >= FEWEST, done.stdout
    assert f"aten,{level.aten.upper()}" in done.stdout.splitlines()
    assert re.search(rf"^onednn_verbose,.*info,cpu,isa:.*{re.escape(level.shown)}\s*$", done.stdout, re.MULTILINE)
    if is_intel():
        assert mkl_level(done.stdout) == level.name


@every_level
def test_a_level_that_the_processor_lacks_is_named(
    level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"vendor_id\t: GenuineIntel\nflags\t\t: fpu {' '.join(level.flags[:-1])} sse2\n\n")
    monkeypatch.setattr(processors, "CPUINFO", cpuinfo)
    with pytest.raises(pytest.skip.Exception, match=f"level {level.name} was not tried: .* has no {level.flags[-1]}$"):
        skip_where_missing(level)
    cpuinfo.write_text(f"vendor_id\t: GenuineIntel\nflags\t\t: fpu {' '.join(level.flags)} sse2\n\n")
    skip_where_missing(level)


def count_passed(report: str) -> int:
    found = re.search(r"(\d+) passed", report)
    return int(found[1]) if found else 0


def mkl_level(report: str) -> str:
    """The level that MKL's own line describes, or that line."""
    (line,) = [line for line in report.splitlines() if line.startswith("MKL_VERBOSE oneMKL")]
    return next((name for name, sign in MKL_SAYS.items() if sign in line), line)
