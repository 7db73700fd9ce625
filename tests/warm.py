"""Console scripts that start at once: forks of one process, which has loaded the libraries but nothing of this project.

A `dvc repro` starts a process for every stage, each of which would spend seconds on loading torch, and DVC one on
itself. What they run, and where from, is what the scripts themselves would: the entry point, found on PYTHONPATH first.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tomllib
import traceback
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARIES = (
    "accelerate", "altair", "av", "dvc.cli", "dvc.repo.experiments.queue.celery", "h5py", "huggingface_hub",
    "pydantic", "scipy.optimize", "scipy.stats", "sklearn.metrics", "tokenizers", "torch._dynamo",
    "torchaudio", "transformers.models.bert", "transformers.models.wav2vec2", "transformers.trainer", "typer",
    "vl_convert",
)  # fmt: skip
LAUNCHER = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps([{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    status = server.recv(1)
sys.exit(status[0] if status else 1)
"""


@contextlib.contextmanager
def warm_scripts(folder: Path) -> Iterator[Path]:
    """The path of a folder with all console scripts, to be put at the beginning of PATH."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    folder.mkdir()
    address = folder / "server"
    for name in ["dvc", *scripts]:
        (folder / name).write_text(LAUNCHER.format(python=sys.executable, address=str(address), name=name))
        (folder / name).chmod(0o755)
    command = [sys.executable, "-c", "from tests.warm import serve; serve()", str(address)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout
        assert server.stdout.read(1) == b"r"
        try:
            yield folder
        finally:
            server.terminate()


def serve() -> None:
    """Fork for every connection."""
    for name in LIBRARIES:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(sys.argv[1])
        server.listen()
        os.write(1, b"r")
        while True:
            client, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _answer(client)
            client.close()


def _answer(client: socket.socket) -> None:
    _, descriptors, *_ = socket.recv_fds(client, 1, 3)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    with client.makefile("rb") as request:
        name, arguments, folder, environment = json.load(request)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [name, *arguments]
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    client.sendall(bytes([_run(name)]))
    os._exit(0)


def _run(name: str) -> int:
    """Exit status of the console script."""
    status: object = 0
    try:
        (script,) = entry_points(group="console_scripts", name=name)
        status = script.load()()
    except SystemExit as done:
        status = done.code
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else int(status is not None)
