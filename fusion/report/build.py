"""From features, models and results to the one file of the page."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion.checkpoint import LoadedModel, Provenance, check_compatible, load_seeds
from fusion.data import Split, hold, load_for
from fusion.errors import FeatureError, ModelError, OutputError
from fusion.evaluation import Record, read_records
from fusion.objective import Task, find_task
from fusion.report import overview
from fusion.report.results import read_results
from fusion.report.turns import Beside, Said, Views, ask, describe_turns, script_json
from fusion.report.utterances import find_sounds, find_words, labels
from fusion.report.views import LONGEST, Viewer, weigh_parts
from fusion.runtime import Memory, count_jobs, memory_for_features, write_file, writing
from fusion.tables import isolated
from pipeline.settings import refuse_pipe, sole_writer
from pipeline.store import SPLITS, Features

PAGE_BYTES = 4_800_000  # views are added while the page stays below
SOUND_BYTES = 1_500_000  # for recordings inside the page
FEW = 2000  # turns, of which models speak one after the other: starting processes takes longer
TOGETHER = 8  # conversations whose views are made at a time
FRAMES = 4096  # of these at most, padding included: maps grow with the square of an utterance
SCRIPTS = ("data.js", "list.js", "dialogue.js", "sound.js", "views.js", "main.js")
PAGE = "index.html"
GENERATOR, HEAD = b'<meta name="generator" content="erc-fusion ', 4096  # of a page of ours, in so many bytes


@dataclass(frozen=True)
class Sources:
    """What the page shows beside features, models and results, where it is available."""

    manifest: Path | None = None
    root: Path | None = None  # of the corpus: the manifest names recordings relative to it
    encoders: Sequence[Path] = ()  # files and folders in which the tokenizer of the text encoder may lie
    beside: Path | None = None  # the folder of another model, which is asked about the same turns


@dataclass(frozen=True)
class Page:
    """What was written."""

    turns: int
    viewed: int  # turns with views of the model
    recordings: int
    size: int  # bytes


def write_page(
    features: Features,
    models: Path,
    results: Path,
    split: str,
    sources: Sources,
    output: Path,
    device: torch.device,
    memory: Memory = "auto",
) -> Page:
    """Write `output`/index.html: the scores in `results`, and the turns of `split` (or `all`).

    Raises:
        ModelError, FeatureError, ResultError: something is missing, damaged, or of other models or features.
        OutputError: the page cannot be written, or another one is there.
        BusyError: another process writes it.
    """
    with sole_writer(output):
        _check_replaceable(output / PAGE)
        loaded = load_seeds(models, device)
        for one in loaded:
            check_compatible(one, features)
        found = read_results(results, loaded, features)
        records = read_records(sources.manifest, features)
        splits = _load(features, loaded[0], split, device, memory)
        task = find_task(loaded[0].provenance.recipe.train.target, len(features.label_names))
        many = sum(len(one.ids) for one in splits) > FEW
        jobs = count_jobs(None, device) if many else 1
        said = ask(loaded, splits, task, jobs)
        name = loaded[0].provenance.recipe.model.name
        other = (
            _ask_other(sources.beside, name, features, task, split, device, memory, jobs) if sources.beside else None
        )
        order = _order(splits, said)
        ids = [name for one in splits for name in one.ids]
        names = [record.audio for turn in order if (record := records.get(ids[turn])) and record.audio]
        sounds = find_sounds(names, sources.root, output, SOUND_BYTES) if sources.root else {}
        seeds = [one.provenance.seed for one in loaded]
        parts = weigh_parts(loaded, splits, said.answers)
        described = (
            overview.describe_results(found, loaded, features, records)
            | overview.describe_data(features, records, task.target)
            | overview.describe_parts(parts, seeds, task.target)
        )
        if other:
            described |= overview.describe_beside(name, said, other, splits)
        note = overview.views_note(parts, task.target)

        def draw(views: Views) -> bytes:
            shown = _note(split, len(ids), views, bool(records), len(sounds), loaded[0].provenance)
            variables = {"constant_rows": overview.constant_rows(views.constants), "explorer_note": shown}
            turns = describe_turns(features, splits, said, seeds, records, views, sounds, name, other)
            return render(described | variables | {"view_seed": seeds[0]}, turns)

        budget = PAGE_BYTES - len(draw(Views(seeds[0], note=note)))
        views = _views(loaded[0], splits, order, records, features, sources.encoders, budget)
        views = replace(views, note=note)
        content = draw(views)
        write_file(output / PAGE, content)
        return Page(len(ids), len(views.content), len(sounds), len(content))


def _check_replaceable(page: Path) -> None:
    """Refuse at once what is not ours to replace; a page of ours can be made again from what it was made of."""
    refuse_pipe(page)
    with writing(page):
        if page.exists() and GENERATOR not in page.read_bytes()[:HEAD]:
            raise OutputError(f"{page}: exists and is not a page of fusion-report; name another folder (--output)")


def render(variables: dict[str, Any], turns: dict[str, Any]) -> bytes:
    """The page. Its policy lets the browser run this script alone, and ask for nothing but recordings beside it."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    assets = files("fusion.report") / "assets"
    read = {path.name: path.read_text(encoding="utf-8") for path in assets.iterdir() if path.is_file()}
    script = '"use strict";\n(() => {\n' + "\n".join(read[name] for name in SCRIPTS) + "})();\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "media-src data: file: 'self'; base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=FunctionLoader(read.get),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: isolated(value) if type(value) is str else value,
    )
    drawn = {name: _markup(value) if "chart" in name else value for name, value in variables.items()}
    defaults = dict.fromkeys(("confusion", "truth_charts", "ablations", "robustness", "beside"))
    inlined = {
        "policy": policy, "style": Markup(read["page.css"]), "script": Markup(script),
        "turns": Markup(script_json(turns)),
    }  # fmt: skip
    return environment.get_template("page.html").render(defaults | drawn | inlined).encode()


def _markup(drawn: Any) -> Any:
    """Pictures of our own making, in which vl-convert has escaped what is text."""
    from markupsafe import Markup

    return [Markup(one) for one in drawn] if isinstance(drawn, list) else drawn and Markup(drawn)


def _ask_other(
    folder: Path, own: str, features: Features, task: Task, split: str, device: torch.device, memory: Memory, jobs: int
) -> Beside:
    """What the models in `folder` say of the turns of `split`.

    Raises:
        ModelError: they cannot be loaded, are of other encoders or labels, or learned another target.
    """
    loaded = load_seeds(folder, device)
    for one in loaded:
        check_compatible(one, features)
    recipe = loaded[0].provenance.recipe
    if recipe.train.target != task.target:
        raise ModelError(f"{folder}: learned the {recipe.train.target}, these models the {task.target}; name others")
    name = recipe.model.name if recipe.model.name != own else f"{recipe.model.name} ({folder})"
    return Beside(name, ask(loaded, _load(features, loaded[0], split, device, memory), task, jobs))


def _load(features: Features, model: LoadedModel, name: str, device: torch.device, memory: Memory) -> list[Split]:
    here = [split for split in SPLITS if split in features.utterances.splits]
    if name != "all" and name not in SPLITS:
        raise FeatureError(f"--split {name}: expected one of {', '.join(SPLITS)} or all")
    asked = here if name == "all" else [name]
    splits = [load_for(features, model.provenance.recipe, one, device) for one in asked]
    return hold(splits, memory_for_features(memory, device))


def _order(splits: Sequence[Split], said: Said) -> list[int]:
    """The turns, those of the conversations first of which most is wrong or moves without the other turns."""
    worth = said.wrong + said.change / max(float(said.change.max(initial=0)), 1e-12)
    offsets = _offsets(splits)
    means = np.add.reduceat(worth, offsets[:-1]) / np.diff(offsets)
    ranked = np.argsort(-means, kind="stable")
    return [turn for one in ranked.tolist() for turn in range(offsets[one], offsets[one + 1])]


def _offsets(splits: Sequence[Split]) -> np.ndarray:
    """(conversations + 1,) of all splits, one behind the other."""
    return np.cumsum([0, *(length for split in splits for length in split.conversations.diff().tolist())])


def _views(
    model: LoadedModel,
    splits: Sequence[Split],
    order: Sequence[int],
    records: dict[str, Record],
    features: Features,
    encoders: Sequence[Path],
    budget: int,
) -> Views:
    """The views of the turns in this order that fit into `budget` bytes of the page, with their words."""
    viewer, content, words = Viewer(model), dict[int, bytes](), dict[int, list[str]]()
    known = find_words(features.text.identity if features.text else None, encoders)
    ids = [name for split in splits for name in split.ids]
    tokens = [count for split in splits for count in split.text.lengths.tolist()]
    for turn, shown in _show_all(viewer, splits, order):
        record = records.get(ids[turn])
        pieces = known.of(record.text, tokens[turn]) if known and record else None
        budget -= (len(shown) + 2) // 3 * 4 + len(script_json([str(turn), str(turn), pieces]))
        if not viewer.axes or budget < 0:
            break
        content[turn] = shown
        if pieces:
            words[turn] = labels(pieces, LONGEST)
    return Views(model.provenance.seed, viewer.axes, content, words, viewer.constants)


def _show_all(viewer: Viewer, splits: Sequence[Split], order: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Turns and their views, conversation by conversation."""
    offsets, first = _offsets(splits), 0
    places: dict[int, tuple[Split, int, int]] = {}  # by first turn: split, conversation in it, first turn of the split
    for split in splits:
        for number, start in enumerate(split.conversations[:-1].tolist()):
            places[first + start] = (split, number, first)
        first += len(split.ids)
    starts = [turn for turn in order if turn in places]
    assert len(starts) == len(offsets) - 1
    for split, numbers, before in _together([places[start] for start in starts]):
        for shown in viewer.show(split, numbers):
            yield before + shown.utterance, shown.content


def _together(places: Sequence[tuple[Split, int, int]]) -> Iterator[tuple[Split, list[int], int]]:
    """Neighbours of one split, as many as are worth a batch."""
    held: list[int] = []
    for index, (split, number, before) in enumerate(places):
        held.append(number)
        following = places[index + 1][0] if index + 1 < len(places) else None
        rows = max(int(split.audio.lengths.max()), int(split.text.lengths.max()))
        turns = sum(int(split.conversations[one + 1] - split.conversations[one]) for one in held)
        if following is not split or len(held) == TOGETHER or rows * turns >= FRAMES:
            yield split, held, before
            held = []


def _note(split: str, turns: int, views: Views, has_texts: bool, sounds: int, model: Provenance) -> str:
    """What the explorer shows."""
    which = "all splits" if split == "all" else f"the {split} split"
    shown = "Probabilities are means over seeds, in steps of 0.4 %." if model.labels else "Scores are means over seeds."
    parts = [f"All {turns:,} turns of {which}. {shown}"]
    if split != "test":
        beside = model.recipe.own.linear_path
        parts.append(f"Models have learned from train{', their linear path from validation, too' if beside else ''}.")
    if views.content:
        words = "" if views.words else " Words are numbered: the tokenizer of their encoder is not available."
        parts.append(f"Views are those of seed {views.seed}, for {len(views.content):,} turns.{words}")
    if not has_texts:
        parts.append("No manifest was given, so turns go by their ids.")
    elif not sounds:
        parts.append("No recordings were available.")
    return " ".join(parts)
