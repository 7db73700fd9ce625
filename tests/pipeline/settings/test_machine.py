"""Cores and free memory, within a container's limits."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.settings import count_cores, free_bytes, ran_out_of_memory
from pipeline.settings import machine as settings

GB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB free, whose container may take 6 GB and holds 5, 3 of them of files."""
    contents = {
        "meminfo": f"MemTotal: 1 kB\nMemAvailable: {8 * GB // 1024} kB\n",
        "own": "0::/\n",
        "groups/memory.max": f"{6 * GB}\n",
        "groups/memory.current": f"{5 * GB}\n",
        "groups/memory.stat": f"anon {2 * GB}\nfile {3 * GB}\ninactive_file {2 * GB}\nactive_file {GB}\n",
    }
    (tmp_path / "groups").mkdir()
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(settings, "OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(settings, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(settings, "CGROUP", tmp_path / "groups")
    return tmp_path


def test_what_files_hold_in_the_cache_of_a_container_is_free(machine: Path) -> None:
    assert free_bytes(torch.device("cpu")) == 4 * GB


def test_without_a_limit_it_is_what_the_machine_has(machine: Path) -> None:
    (machine / "groups" / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) == 8 * GB


def test_a_system_that_does_not_tell_has_a_little(machine: Path) -> None:
    shutil.rmtree(machine)
    assert free_bytes(torch.device("cpu")) == settings.UNKNOWN


def job_of(machine: Path) -> Path:
    """The folder of a job inside of the container, as Slurm and systemd make them."""
    (machine / "own").write_text("12:pids:/x\n0::/slurm/job_7\n")
    folder = machine / "groups" / "slurm" / "job_7"
    folder.mkdir(parents=True)
    return folder


def test_a_job_has_its_own_limit_and_those_of_the_groups_above(machine: Path) -> None:
    job = job_of(machine)
    (job / "memory.max").write_text(f"{2 * GB}\n")
    (job / "memory.current").write_text(f"{GB}\n")
    (job / "memory.stat").write_text("inactive_file 0\n")
    assert free_bytes(torch.device("cpu")) == GB
    (job / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) == 4 * GB


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8), ("?", 8)]
)
def test_cores_are_those_of_the_quota_or_of_the_binding(
    machine: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (job_of(machine).parent / "cpu.max").write_text(f"{quota}\n")
    assert count_cores() == cores


def test_of_a_group_outside_of_the_view_the_root_counts(machine: Path) -> None:
    (machine / "own").write_text("0::/../../elsewhere\n")
    assert free_bytes(torch.device("cpu")) == 4 * GB


@pytest.mark.parametrize(("share", "expected"), [(1.0, 60), (0.75, 60), (0.25, 20)])
def test_a_process_may_use_its_share_of_a_gpu_as_far_as_that_is_free(
    monkeypatch: pytest.MonkeyPatch, share: float, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * GB, 80 * GB))
    assert free_bytes(torch.device("cuda"), share) == expected * GB


LACKS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:125] DefaultCPUAllocator: not enough memory: you tried to allocate 4"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported at some other call"),  # pinned memory
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
]


@pytest.mark.parametrize("error", LACKS, ids=lambda error: str(error)[:40] or type(error).__name__)
def test_a_lack_of_memory_is_told_from_other_errors(error: Exception) -> None:
    assert ran_out_of_memory(error)
    assert not ran_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not ran_out_of_memory(ValueError("not enough memory of the past"))


def test_the_cpus_own_lack_of_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ran_out_of_memory(caught.value)
