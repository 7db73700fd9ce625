"""How long a report of MELD's size takes, how large it is, and how quickly a browser filters it.

    python benchmarks/report.py --work /tmp/report
    python benchmarks/report.py --work /tmp/report --dim 64 --share 1/8

Features are made (`measures/planted.py`) to MELD's real lengths, conversations, splits, labels and texts, 768 wide in
float16 (3.6 GB), from its three CSVs and `clips.csv`; the models of `params.yaml` train for one epoch on one
conversation in ten, since nothing here depends on what they learned. They stay in the work folder. Measured are

- `fusion-report --split all` in a process of its own, from start to end, and the bytes of the page;
- each filter and order in chromium, five times: from the event to the frame after the list is drawn. Median and ends.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from measures.planted import DIM, write_planted
from measures.spoken import of_share, read_spoken
from measures.timing import Spread, say, spread
from playwright.sync_api import Browser, sync_playwright

SHARED = Path(os.environ.get("ERC_SHARED", Path(__file__).parents[2] / "shared")) / "data"
PARAMS = Path(__file__).parents[1] / "params.yaml"
SETTINGS = ["train.epochs=1", "evaluate.resamples=100", "evaluate.missing=[]"]
TRAINED = 0.1  # share of the conversations
REPEATS = 5
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FILTERS = {
    "wrong ones": ("show", "wrong"),
    "one emotion": ("true", "1"),
    "audio and text disagree": ("show", "disagree"),
    "biggest change first": ("order", "change"),
    "search": ("search", "you"),
    "all": ("show", "all"),
}
FILTER = """([name, value]) => new Promise((resolve) => {
  const form = document.getElementById("filters");
  form.reset();
  const start = performance.now();
  form.elements[name].value = value;
  form.elements[name].dispatchEvent(new Event("input", { bubbles: true }));
  requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - start)));
})"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for features, models and the page")
    parser.add_argument("--meld", type=Path, default=SHARED / "meld", help="MELD's CSVs and clips.csv")
    parser.add_argument("--share", type=Fraction, default=Fraction(1), help="of the conversations")
    parser.add_argument("--dim", type=int, default=DIM, help="width of the features")
    options = parser.parse_args(arguments)
    everyone = read_spoken(options.meld)
    spoken = of_share(everyone, float(options.share))
    features = write_planted(spoken, options.work, options.dim)
    train = write_planted(of_share(everyone, TRAINED), options.work, options.dim)
    folder = features.parent
    if not (folder / "results" / "details.json").exists():
        say("training and scoring")
        _run("fusion-train", "--features", train, "--output", folder / "models", *_settings())
        places = ["--models", folder / "models", "--output", folder / "results"]
        _run("fusion-evaluate", "--features", features, *places, *_settings())
    start, cpu = time.perf_counter(), _cpu_seconds()
    places = ["--models", folder / "models", "--results", folder / "results", "--output", folder / "report"]
    _run("fusion-report", "--features", features, *places, "--split", "all", *_settings())
    seconds, cpu = time.perf_counter() - start, _cpu_seconds() - cpu
    page = folder / "report" / "index.html"
    size = page.stat().st_size / 1e6
    print(f"{len(spoken)} turns, {options.dim} wide: {seconds:.1f} s, {cpu:.1f} s of a core, {size:.2f} MB")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        for name, milliseconds in filter_times(browser, page).items():
            print(f"{name}: {milliseconds} ms")
        browser.close()


def filter_times(browser: Browser, page: Path) -> dict[str, Spread]:
    """Milliseconds by filter."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.goto(page.absolute().as_uri())
    say(f"the page lists {opened.inner_text('#count')}")
    times = {
        name: spread([opened.evaluate(FILTER, list(chosen)) for _ in range(REPEATS)])
        for name, chosen in FILTERS.items()
    }
    opened.close()
    return times


def _cpu_seconds() -> float:
    """Of all processes that were started here and have ended: what a busy machine takes from them is not in it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _settings() -> list[str]:
    return ["--params", str(PARAMS), *(argument for one in SETTINGS for argument in ("--set", one))]


def _run(*command: object) -> None:
    script = Path(sys.executable).with_name(str(command[0]))
    subprocess.run([str(script), *map(str, command[1:])], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
