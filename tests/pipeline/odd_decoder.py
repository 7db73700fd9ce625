"""A decoder process in which the names of files decide what happens, for tests: real processes that hang and die."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.media import Channels, Recording, Stretch, decoder_process
from pipeline.media.decoding import decode_stretches, nothing


def odd(
    path: Path, channels: Channels, stretches: Sequence[Stretch], progress: Callable[[], None]
) -> Iterator[tuple[Stretch, Recording]]:
    """hang*, crash*, slow*, forbidden* as they say; crash-once* only where it finds no other file of its name
    with .crashed; late-hang* and late-crash* after the first stretch.
    """
    name = path.name
    if name.startswith("crash-once") and not path.with_suffix(".crashed").exists():
        path.with_suffix(".crashed").touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("forbidden"):
        yield from ((stretch, nothing("unreadable (Permission denied)")) for stretch in stretches)
        return
    for stretch, recording in decode_stretches(path, channels, stretches, progress):
        if name.startswith("slow"):
            for _ in range(15):
                time.sleep(0.1)
                progress()
        if name.startswith("hang"):
            time.sleep(3600)
        if name.startswith("crash-always"):
            os.kill(os.getpid(), signal.SIGSEGV)
        yield stretch, recording
        if name.startswith("late-hang"):
            time.sleep(3600)
        if name.startswith("late-crash"):
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    decoder_process.decode_stretches = odd  # type: ignore[assignment]
    decoder_process.main()
