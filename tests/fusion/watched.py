"""fusion-predict, run many times in one process in which whatever touches the world is written down.

`main` is given a folder that holds `jobs.json`, with a list of lists of arguments, and works there. It writes
`told.json`: the outcome of each, and what was seen, which is files that were opened for writing, made, moved or
removed, programs that were started, addresses that were asked for, and what pickles named.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.startfile", "subprocess.Popen", "pickle.find_class")
ASKS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname")

seen: list[str] = []
watching = False


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not watching:
        return
    if event == "open":
        path, mode, flags = arguments
        if (mode and set(str(mode)) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen.append(f"write {path}")
    elif event in (*CHANGES, *ASKS):
        seen.append(f"{event} {arguments[0]}")
    elif event in RUNS:
        seen.append(f"{event} {arguments[:2]}")


def main(folder: Path) -> None:
    """In a process of its own: a hook stays for as long as it lives."""
    global watching
    import huggingface_hub.constants
    from typer.testing import CliRunner

    from fusion.cli import predict_app
    from fusion.prediction import Predictor, Turn

    os.chdir(folder)
    sys.dont_write_bytecode = True
    warnings.simplefilter("default")  # as users have it
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    jobs = json.loads((folder / "jobs.json").read_text())
    with Predictor.load(
        jobs["good"], "cpu"
    ) as predictor:  # what libraries do when they are loaded is not what is asked
        predictor.predict([Turn("Hello.", jobs["sound"])])
    sys.addaudithook(watch)
    told = []
    for arguments in jobs["arguments"]:
        watching = True
        done = CliRunner().invoke(predict_app, arguments)
        watching = False
        error = repr(done.exception) if done.exception and not isinstance(done.exception, SystemExit) else None
        told.append({"status": done.exit_code, "out": done.stdout, "err": done.stderr, "raised": error})
    (folder / "told.json").write_text(json.dumps({"told": told, "seen": seen}))
