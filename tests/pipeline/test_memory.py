"""Free memory, within a container's limit."""

from pathlib import Path

import pytest
import torch

from pipeline.settings import free_bytes, memory

GB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB free, whose container may take 6 GB and holds 5, 3 of them of files."""
    contents = {
        "meminfo": f"MemTotal: 1 kB\nMemAvailable: {8 * GB // 1024} kB\n",
        "memory.max": f"{6 * GB}\n",
        "memory.current": f"{5 * GB}\n",
        "memory.stat": f"anon {2 * GB}\nfile {3 * GB}\ninactive_file {2 * GB}\nactive_file {GB}\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    return tmp_path


def test_what_files_hold_in_the_cache_of_a_container_is_free(machine: Path) -> None:
    assert free_bytes(torch.device("cpu")) == 4 * GB


def test_without_a_limit_it_is_what_the_machine_has(machine: Path) -> None:
    (machine / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) == 8 * GB


def test_a_system_that_does_not_tell_has_a_little(machine: Path) -> None:
    for path in machine.iterdir():
        path.unlink()
    assert free_bytes(torch.device("cpu")) == memory.UNKNOWN
