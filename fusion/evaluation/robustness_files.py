"""Write robustness studies into a folder: the numbers of all, a table and a curve of each. The same bytes every time.

    scores.csv    a row for each study and level: every metric, its interval, its change against clean
    table.md      a table for each study, of the metric that training selected on
    words.png     score over the measured word error rate, with the recogniser's as a point of its own
    noise.png     score over the signal-to-noise ratio
    missing.png   score over the share of utterances without audio, and without text

A study that was not asked for has no rows and no picture. The first two files are always there.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion.evaluation.robustness import CLEAN, MISSING_AUDIO, MISSING_TEXT, NOISE, RECOGNISER, WORDS, Level, Robustness
from fusion.objective import METRICS
from fusion.runtime import write_file
from fusion.tables import bounds, csv_text, markdown_table, mean_std, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


BAND = 0.18  # opacity
TITLES = {
    WORDS: "Word errors in the transcripts",
    RECOGNISER: "Transcripts of a speech recogniser",
    NOISE: "Noise in the recordings",
    MISSING_AUDIO: "Audio missing",
    MISSING_TEXT: "Text missing",
}
PICTURES = {
    "words": ((WORDS, RECOGNISER), "Word errors in the transcripts", "word error rate"),
    "noise": ((NOISE,), "Noise in the recordings", "signal-to-noise ratio (dB)"),
    "missing": ((MISSING_AUDIO, MISSING_TEXT), "A modality missing", "share of utterances without it"),
}  # by name: studies, title, x axis
AXES = {study: axis for studies, _, axis in PICTURES.values() for study in studies}
# Okabe and Ito's colours, told apart by colour-blind readers, each with a marker of its own
STYLES = {
    WORDS: ("#0072B2", "o", "injected errors"),
    RECOGNISER: ("#D55E00", "D", "recogniser"),
    NOISE: ("#0072B2", "o", "noise"),
    MISSING_AUDIO: ("#0072B2", "o", "audio missing"),
    MISSING_TEXT: ("#D55E00", "s", "text missing"),
}


def write_robustness(robustness: Robustness, folder: Path, run: Mapping[str, Any]) -> None:
    """Write all files into `folder`, and take away pictures of studies that are no longer asked for.

    Raises:
        OutputError: a file cannot be written.
    """
    contents = {"scores.csv": scores_csv(robustness, run).encode(), "table.md": table_md(robustness, run).encode()}
    contents |= {
        f"{name}.png": picture(robustness, name, run["model"])
        for name in PICTURES
        if _levels(robustness, PICTURES[name][0])
    }
    for name, content in contents.items():
        write_file(folder / name, content)
    for name in PICTURES:
        if f"{name}.png" not in contents:
            (folder / f"{name}.png").unlink(missing_ok=True)


def scores_csv(robustness: Robustness, run: Mapping[str, Any]) -> str:
    """Every level of every study; the clean split is word error rate 0, inf dB, share 0."""
    metrics = list(robustness.floor)
    kinds = ("", "_std", "_low", "_high", "_change", "_change_low", "_change_high")
    header = ["run", "study", "level", "word_error_rate", *(name + kind for name in metrics for kind in kinds)]
    return csv_text(header, ([run["id"], *_cells(level, metrics)] for level in robustness.levels))


def _cells(level: Level, metrics: Sequence[str]) -> list[str]:
    cells = [level.study, "" if level.level is None else f"{level.level:g}", number(level.word_error_rate)]
    for name in metrics:
        score = level.scores[name]
        cells += [
            number(value)
            for value in (
                score.mean,
                score.std,
                score.interval.low,
                score.interval.high,
                score.change,
                score.change_interval.low,
                score.change_interval.high,
            )
        ]
    return cells


def table_md(robustness: Robustness, run: Mapping[str, Any]) -> str:
    """A table for each study."""
    metric = robustness.metric
    lines = [
        f"# Robustness of {run['model']} on the test split",
        "",
        f"Mean ± standard deviation of {metric} over seeds {run['seeds']}; {robustness.confidence:.0%} intervals "
        "resample whole conversations, those of a change with the same draws on both sides. "
        f"The floor, always {robustness.task.floor_is}, is {robustness.floor[metric]:.3f}.",
        "",
    ]
    for study, title in TITLES.items():
        levels = _levels(robustness, (study,))
        if levels:
            lines += [f"## {title}", "", *_study_table(levels, robustness), ""]
    if not robustness.levels:
        lines += ["No study was asked for: see `evaluate.missing` and `evaluate.degrade` in params.yaml.", ""]
    sources = [f"`{name}` {part.digest[:12]}" for name, part in robustness.parts.items()]
    lines += [
        f"Run {run['id']} (its parameters are in details.json)." + f" Parts: {', '.join(sources)}." * bool(sources)
    ]
    return "\n".join(lines) + "\n"


def _study_table(levels: Sequence[Level], robustness: Robustness) -> list[str]:
    metric, confidence = robustness.metric, f"{robustness.confidence:.0%} interval"
    words = levels[0].word_error_rate is not None
    header = ["level", *(["word error rate"] if words else []), metric, confidence, "change", confidence]
    rows = []
    for level in levels:
        score, clean = level.scores[metric], level is levels[0]
        errors = "" if level.word_error_rate is None else f"{level.word_error_rate:.3f}"
        change = ["", ""] if clean else [f"{score.change:+.3f}", bounds(score.change_interval, signed=True)]
        rows.append(
            [
                level_name(level.study, level.level),
                *([errors] if words else []),
                mean_std(score.mean, score.std),
                bounds(score.interval),
                *change,
            ]
        )
    return markdown_table(header, rows)


def level_name(study: str, level: float | None) -> str:
    """A level as tables call it.

    >>> level_name("noise", math.inf), level_name("noise", 20.0), level_name("missing-text", 0.25)
    ('clean', '20 dB', '0.25')
    """
    if level is None:
        return "recogniser"
    if level == CLEAN.get(study):
        return "clean"
    return f"{level:g} dB" if study == NOISE else f"{level:g}"


def _levels(robustness: Robustness, studies: Sequence[str]) -> list[Level]:
    return [level for level in robustness.levels if level.study in studies]


def picture(robustness: Robustness, name: str, model: str) -> bytes:
    """One of PICTURES as PNG: mean and deviation over seeds, the mean's interval as a band, the floor dashed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    studies, title, axis = PICTURES[name]
    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for study in studies:
        _draw(axes, _levels(robustness, (study,)), robustness.metric)
    floor = robustness.floor[robustness.metric]
    axes.axhline(floor, color="0.4", linestyle="--", linewidth=1, label=robustness.task.floor_is)
    band = Patch(color="0.5", alpha=BAND, linewidth=0, label=f"{robustness.confidence:.0%} interval of the mean")
    lowest, highest = METRICS[robustness.metric].bounds
    axes.set(title=f"{title}: {model}", xlabel=axis, ylabel=f"test {robustness.metric}, mean ± std over seeds")
    axes.set_ylim(lowest, highest if math.isfinite(highest) else None)
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=[*axes.get_legend_handles_labels()[0], band], frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def _draw(axes: "Axes", levels: Sequence[Level], metric: str) -> None:
    if not levels:
        return
    study = levels[0].study
    colour, marker, label = STYLES[study]
    shown = levels[1:] if study == RECOGNISER else levels  # its clean level is that of the curve
    scores = [level.scores[metric] for level in shown]
    places = [float(index) for index in range(len(shown))] if study == NOISE else [_place(level) for level in shown]
    low, high = [score.interval.low for score in scores], [score.interval.high for score in scores]
    if study == RECOGNISER:
        axes.vlines(places, low, high, color=colour, alpha=BAND, linewidth=8)
    else:
        axes.fill_between(places, low, high, color=colour, alpha=BAND, linewidth=0)
    means, deviations = [score.mean for score in scores], [score.std or 0.0 for score in scores]
    axes.errorbar(places, means, deviations, color=colour, marker=marker, capsize=3, label=label)
    if study == NOISE:  # from clean to loud, evenly spaced: clean has no place on a scale of dB
        axes.set_xticks(places, [level_name(study, level.level).removesuffix(" dB") for level in shown])


def _place(level: Level) -> float:
    """Where a level lies on the x axis."""
    place = level.word_error_rate if level.word_error_rate is not None else level.level
    return math.nan if place is None else place
