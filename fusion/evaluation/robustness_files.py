"""Robustness studies as files of `results/robustness/`: the numbers of all, a table and a curve of each, the same
bytes every time; pictures name the run below their title and in their metadata.

    scores.csv    a row for each study and level: every metric, its interval, its change against clean
    table.md      a table for each study, of the metric that training selected on
    words.png     score over the measured word error rate, with the recogniser's as a point of its own
    noise.png     score over the signal-to-noise ratio
    missing.png   score over the share of utterances without audio, and without text

A study that was not asked for has no rows and no picture. The first two files are always there.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fusion.evaluation.pictures import BLUE, VERMILION, draw_png
from fusion.evaluation.robustness import CLEAN, MISSING_AUDIO, MISSING_TEXT, NOISE, RECOGNISER, WORDS, Level, Robustness
from fusion.objective import METRICS
from fusion.tables import bounds, csv_text, markdown_table, mean_std, number

BAND = 0.18  # opacity
WIDTH, HEIGHT = 470, 290  # pixels inside the axes
FLOOR, SPREAD = "#666666", "#CCCCCC"
DASHES = "M-1,-.08H-.2V.08H-1ZM.2,-.08H1V.08H.2Z"  # the symbol of a dashed line in a legend
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
STYLES = {
    WORDS: (BLUE, "circle", "injected errors"),
    RECOGNISER: (VERMILION, "diamond", "recogniser"),
    NOISE: (BLUE, "circle", "noise"),
    MISSING_AUDIO: (BLUE, "circle", "audio missing"),
    MISSING_TEXT: (VERMILION, "square", "text missing"),
}


def robustness_files(robustness: Robustness, run: Mapping[str, Any]) -> dict[str, str | bytes | None]:
    """The content of every file by its name; None: there is none, since its study was not asked for."""
    return {
        "scores.csv": scores_csv(robustness, run),
        "table.md": table_md(robustness, run),
        **{
            f"{name}.png": picture(robustness, name, run) if _levels(robustness, PICTURES[name][0]) else None
            for name in PICTURES
        },
    }


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
        f"Mean ± standard deviation of {metric} over seeds {run['seeds'].replace(',', ', ')}; "
        f"{robustness.confidence:.0%} intervals resample whole conversations, those of a change with the same draws on "
        "both sides. "
        f"The floor, always {robustness.task.floor_is}, is {robustness.floor[metric]:z.3f}.",
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
        errors = "" if level.word_error_rate is None else f"{level.word_error_rate:z.3f}"
        change = ["", ""] if clean else [f"{score.change:+z.3f}", bounds(score.change_interval, signed=True)]
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


def picture(robustness: Robustness, name: str, run: Mapping[str, Any]) -> bytes:
    """One of PICTURES as PNG: mean and deviation over seeds, the mean's interval as a band, the floor dashed."""
    import altair as alt

    (studies, title, axis), metric = PICTURES[name], robustness.metric
    drawn = [study for study in studies if _levels(robustness, (study,))]
    looks = {STYLES[study][2]: STYLES[study][:2] for study in drawn}
    looks |= {
        robustness.task.floor_is: (FLOOR, DASHES),
        f"{robustness.confidence:.0%} interval of the mean": (SPREAD, "square"),
    }
    colour, shape = (alt.Scale(domain=list(looks), range=[look[place] for look in looks.values()]) for place in (0, 1))
    lowest, highest = METRICS[metric].bounds
    limits = {"domain": [lowest, highest]} if math.isfinite(highest) else {"domainMin": lowest}
    legend = alt.Legend(symbolOpacity=1, symbolStrokeWidth=0, labelLimit=0)
    points = [point for study in drawn for point in _points(_levels(robustness, (study,)), metric)]
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("place", type="nominal" if name == "noise" else "quantitative", sort=None, title=axis,
                axis=alt.Axis(grid=False, labelAngle=0, labelFlush=False)),
        color=alt.Color("study:N", scale=colour, legend=legend),
    )  # fmt: skip
    y = alt.Y("mean:Q", title=f"test {metric}, mean ± std over seeds", scale=alt.Scale(nice=False, **limits))
    lone, curves = alt.datum.study == STYLES[RECOGNISER][2], alt.datum.study != STYLES[RECOGNISER][2]
    floor = alt.Chart(alt.Data(values=[{"floor": robustness.floor[metric]}]))
    chart = (
        floor.mark_rule(strokeDash=[5, 3], color=FLOOR).encode(y="floor:Q")
        + base.mark_area(opacity=BAND).encode(y="low:Q", y2="high:Q").transform_filter(curves)
        + base.mark_rule(opacity=BAND, strokeWidth=10).encode(y="low:Q", y2="high:Q").transform_filter(lone)
        + base.mark_line(strokeWidth=1.5).encode(y=y)
        + base.mark_errorbar(ticks={"size": 7}).encode(y=alt.Y("least:Q", title=""), y2="most:Q")
        + base.mark_point(filled=True, opacity=1, size=55).encode(
            y=y, shape=alt.Shape("study:N", scale=shape, legend=legend)
        )
    )
    heading = alt.TitleParams(f"{title}: {run['model']}", subtitle=f"run {run['id']}")
    return draw_png(chart.properties(title=heading, width=WIDTH, height=HEIGHT), run["id"])


def _points(levels: Sequence[Level], metric: str) -> list[dict[str, Any]]:
    """What is drawn of the levels of one study."""
    study, points = levels[0].study, []
    for level in levels[1:] if study == RECOGNISER else levels:  # its clean level is that of the curve
        score = level.scores[metric]
        place: float | str | None = level.level if level.word_error_rate is None else level.word_error_rate
        if study == NOISE:  # from clean to loud, evenly spaced: clean has no place on a scale of dB
            place = level_name(study, level.level).removesuffix(" dB")
        std, interval = score.std or 0.0, score.interval
        points.append(
            {"study": STYLES[study][2], "place": place, "mean": score.mean, "low": interval.low, "high": interval.high,
             "least": score.mean - std, "most": score.mean + std}
        )  # fmt: skip
    return points
