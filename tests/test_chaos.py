"""A minute of scripts/chaos.py; longer ones are a developer's, before a release."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.soak
def test_disturbed_commands_leave_the_older_output_or_the_new_one_and_end_in_the_same_bytes() -> None:
    script = Path(__file__).parents[1] / "scripts" / "chaos.py"
    done = subprocess.run(
        [sys.executable, str(script), "--minutes", "1", "--seed", "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": 0 faults" in done.stdout
    assert "| disturbance | tries |" in done.stdout
