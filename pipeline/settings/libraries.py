"""What libraries read from the environment when they are loaded, for commands that encode."""

import os

from pipeline.settings.arithmetic import settle_cublas


def settle_libraries() -> None:
    """To be called before torch is loaded; what the user has set stays."""
    # before torch starts its threads: ones that wait actively for each other on busy cores take all the time
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # oneDNN keeps what it made for each of a thousand shapes, and batches come in ever new ones: memory would grow with
    # the corpus
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    settle_cublas()
