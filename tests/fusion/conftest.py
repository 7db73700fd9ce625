"""One thread for torch: models here are tiny, and threads that wait for each other on busy cores take all the time."""

from collections.abc import Iterator

import pytest
import torch

from tests.fusion.recorded import Recorded, make_recorded


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return make_recorded(tmp_path_factory.mktemp("recorded"))
