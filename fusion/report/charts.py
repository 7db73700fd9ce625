"""The pictures of the overview, drawn when the page is written: altair's charts as SVG, of no script and no network.

Text and rules take the colour of the page, so that they suit light and dark. Shapes or dashes say the same as colours.
"""

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion.evaluation import AXES, BLUE, GREEN, GREY, ORANGE, SKY, TITLES, VERMILION, draw_svg, level_name
from fusion.objective import METRICS
from fusion.report.results import Results, Row
from fusion.tables import isolated
from pipeline.store import CorpusNote

INK = "currentColor"
WHISKER = "M-1,-.5H-.85V-.1H.85V-.5H1V.5H.85V.1H-.85V.5H-1Z"  # the symbol of an interval in a legend
WIDTH = 230  # pixels beside the axis: a phone shows a chart without shrinking its letters
STEPS = 10  # of probability in the picture of reliability
CELLS = 24  # along each side of the picture of scores


def svg(chart: Any, name: str, label: str) -> str:
    """The chart as an SVG element, whose ids begin with `name`; `label` is what a screen reader says."""
    drawn = draw_svg(chart, INK, "transparent", "system-ui, sans-serif")
    drawn = re.sub(r'\bid="([\w-]+)"', rf'id="{name}-\1"', drawn)
    drawn = re.sub(r"url\(#([\w-]+)\)", rf"url(#{name}-\1)", drawn)
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{html.escape(isolated(label))}" ', 1)


def score_chart(results: Results, corpus: CorpusNote | None) -> str | None:
    """Metrics between 0 and 1: mean, interval, each seed, the floor, and what others published."""
    import altair as alt

    test, rows = results.details["test"], []
    for name in results.metrics:
        if METRICS[name].bounds != (0.0, 1.0):
            continue
        title = METRICS[name].title
        rows.append(_place(title, "mean of the seeds", test[name]["mean"], test[name]["low"], test[name]["high"]))
        rows.append(_place(title, "floor", test[name]["floor"]))
        rows += [_place(title, "each seed", one["test"][name]["value"]) for one in results.details["seeds"].values()]
        rows += [
            _place(title, "published", one.value) for one in (corpus.references if corpus else ()) if one.metric == name
        ]
    if not rows:
        return None
    rows.sort(key=lambda row: row["kind"] == "mean of the seeds")  # drawn last, over the others
    titles = [METRICS[name].title for name in results.metrics]
    interval = f"{float(results.run['intervals']['confidence']):.0%} interval of the mean"
    kinds = [kind for kind in ("mean of the seeds", "each seed", "floor", "published") if _has(rows, kind)]
    kinds.insert(1, interval)
    looks = {
        "mean of the seeds": (BLUE, "circle", 90),
        interval: (INK, WHISKER, 160),
        "each seed": (SKY, "triangle-up", 40),
        "floor": (VERMILION, "triangle-right", 60),
        "published": (GREEN, "diamond", 80),
    }
    scales = [alt.Scale(domain=kinds, range=[looks[kind][place] for kind in kinds]) for place in range(3)]
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("metric:N", sort=titles, title=None))
    intervals = base.mark_rule(strokeWidth=1.5, color=INK).encode(x="low:Q", x2="high:Q")
    for end in ("low:Q", "high:Q"):
        intervals += base.mark_tick(color=INK, thickness=1.5, size=14).encode(x=end)
    points = base.mark_point(filled=True, opacity=1).encode(
        x=alt.X("value:Q", title="test split", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("kind:N", scale=scales[0]),
        shape=alt.Shape("kind:N", scale=scales[1]),
        size=alt.Size("kind:N", scale=scales[2]),
    )
    chart = (intervals + points).properties(width=WIDTH, height=alt.Step(34))
    return svg(chart, "scores", "Scores on the test split with intervals; the table has the numbers")


def _place(metric: str, kind: str, value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"metric": metric, "kind": kind, "value": value, "low": low, "high": high}


def _has(rows: Sequence[Mapping[str, Any]], kind: str) -> bool:
    return any(row["kind"] == kind for row in rows)


def curve_charts(results: Results, metric: str, has_path: bool) -> list[str]:
    """Of each stage of training: losses, and the validation `metric` that chooses epochs; a line for each seed.

    The model learns alone: where it `has_path`, a linear path that is fitted afterwards, the titles say so.
    """
    import altair as alt

    charts: list[str] = []
    stages = list(dict.fromkeys(row["stage"] for row in results.curves))
    for number, stage in enumerate(stages):
        own = [row for row in results.curves if row["stage"] == stage]
        pictures = {
            "loss": {"train": "train_loss", "validation": "validation_loss"},
            f"validation {METRICS[metric].title}": {"validation": "validation_metric"},
        }
        for title, columns in pictures.items():
            values = [
                {"epoch": int(row["epoch"]), "seed": row["seed"], "of": of, "value": float(row[column])}
                for row in own
                for of, column in columns.items()
                if row[column]
            ]
            names = list(columns)
            colours, dashes = {"train": BLUE, "validation": VERMILION}, {"train": [1, 0], "validation": [5, 3]}
            lines = [f"{title}{f', stage {stage}' if len(stages) > 1 else ''}{',' * has_path}"]
            lines += ["without the linear path"] * has_path
            chart = (
                alt.Chart(alt.Data(values=values), title=lines)
                .mark_line(opacity=0.8, strokeWidth=1.5, point={"size": 12})
                .encode(
                    x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(zero=False)),
                    y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
                    detail="seed:N",
                    color=alt.Color("of:N", scale=alt.Scale(domain=names, range=[colours[one] for one in names])),
                    strokeDash=alt.StrokeDash("of:N", scale=alt.Scale(domain=names, range=[dashes[n] for n in names])),
                )
                .properties(width=WIDTH + 30, height=150)
            )
            charts.append(
                svg(chart, f"curve{number}{len(charts)}", f"{' '.join(lines)} by epoch, a line for each seed")
            )
    return charts


def reliability_chart(results: Results) -> str:
    """Of predictions as sure as a step of a tenth says, the share that is right, of all seeds together."""
    import altair as alt

    rows = [row for row in results.predictions if row["true"]]
    sure = np.array([float(row[f"p_{row['predicted']}"]) for row in rows])
    right = np.array([row["true"] == row["predicted"] for row in rows])
    step = np.minimum((sure * STEPS).astype(int), STEPS - 1)
    values = [
        {"sure": float(sure[here].mean()), "right": float(right[here].mean()), "count": int(here.sum())}
        for here in (step == one for one in range(STEPS))
        if here.any()
    ]
    whole = alt.Scale(domain=[0, 1])
    even = alt.Chart(alt.Data(values=[{"x": 0, "y": 0}, {"x": 1, "y": 1}]))
    diagonal = even.mark_line(color=VERMILION, strokeDash=[4, 3]).encode(x="x:Q", y="y:Q")
    base = alt.Chart(alt.Data(values=values), title="reliability of probabilities").encode(
        x=alt.X("sure:Q", scale=whole, title="probability of the predicted label"),
        y=alt.Y("right:Q", scale=whole, title="share that is right"),
    )
    points = base.mark_circle(color=BLUE, opacity=1).encode(
        size=alt.Size("count:Q", scale=alt.Scale(range=[20, 220]), legend=None)
    )
    chart = (diagonal + base.mark_line(color=BLUE) + points).properties(width=WIDTH, height=WIDTH - 40)
    return svg(chart, "reliability", "Share of right predictions by their probability; on the dashed line both agree")


def class_chart(results: Results) -> str:
    """Precision, recall and F1 of each label."""
    import altair as alt

    values = [
        {"label": label, "score": score, "mean": own[score]["mean"],
         "low": max(0, own[score]["mean"] - (own[score]["std"] or 0)),
         "high": min(1, own[score]["mean"] + (own[score]["std"] or 0))}
        for label, own in results.details["test"]["per_class"].items()
        for score in ("precision", "recall", "f1")
    ]  # fmt: skip
    order = ["precision", "recall", "f1"]
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("label:N", sort=None, title=None), yOffset=alt.YOffset("score:N", sort=order)
    )
    bars = base.mark_bar().encode(
        x=alt.X("mean:Q", title="mean and standard deviation over seeds", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("score:N", sort=order, scale=alt.Scale(domain=order, range=[SKY, ORANGE, BLUE])),
    )
    spread = base.mark_rule(color=INK).encode(x="low:Q", x2="high:Q")
    chart = (bars + spread).properties(width=WIDTH, height=alt.Step(11, **{"for": "offset"}))
    return svg(chart, "classes", "Precision, recall and F1 of each label; the table has the numbers")


def ablation_chart(rows: Sequence[Row]) -> str:
    """The rows of an ablation table: mean and interval, the first one as a line through all."""
    import altair as alt

    values = [
        {"row": f"{number} {row['name']}"[:60], "mean": float(row["mean"]), "low": _finite(row["low"]),
         "high": _finite(row["high"]), "kind": "base" if number == 0 else "row"}
        for number, row in enumerate(rows)
    ]  # fmt: skip
    base = alt.Chart(alt.Data(values=values)).encode(y=alt.Y("row:N", sort=None, title=None))
    title = f"test {METRICS[rows[0]['metric']].title}" if rows[0]["metric"] in METRICS else rows[0]["metric"]
    intervals = base.mark_rule(strokeWidth=5, color=GREY).encode(
        x=alt.X("low:Q", title=title, scale=alt.Scale(zero=False)), x2="high:Q"
    )
    points = base.mark_point(filled=True, opacity=1, size=70).encode(
        x="mean:Q",
        color=alt.Color("kind:N", legend=None, scale=alt.Scale(domain=["base", "row"], range=[VERMILION, BLUE])),
        shape=alt.Shape("kind:N", legend=None, scale=alt.Scale(domain=["base", "row"], range=["diamond", "circle"])),
    )
    line = alt.Chart(alt.Data(values=values[:1])).mark_rule(strokeDash=[4, 3], color=VERMILION).encode(x="mean:Q")
    chart = (line + intervals + points).properties(width=WIDTH, height=alt.Step(19))
    return svg(chart, "ablations", "Mean and interval of each row of the ablation table; the table has the numbers")


def robustness_charts(rows: Sequence[Row], metric: str, floor: float) -> list[str]:
    """Each study: the score at each level, with its interval, and the floor as a dashed line, all in one range."""
    import altair as alt

    charts: list[str] = []
    ends = [_finite(row[f"{metric}{kind}"]) for row in rows for kind in ("", "_low", "_high")]
    known = [floor, *(end for end in ends if end is not None)]
    scale = alt.Scale(domain=[min(known), max(known)], zero=False)
    for study in dict.fromkeys(row["study"] for row in rows):
        values = [
            {"level": _tick(row), "mean": float(row[metric]), "low": _finite(row[f"{metric}_low"]),
             "high": _finite(row[f"{metric}_high"])}
            for row in rows
            if row["study"] == study
        ]  # fmt: skip
        base = alt.Chart(alt.Data(values=values), title=TITLES.get(study, study)).encode(
            x=alt.X("level:N", sort=None, title=AXES.get(study, "level"), axis=alt.Axis(labelAngle=0))
        )
        line = base.mark_line(color=BLUE, point={"color": BLUE, "size": 45}).encode(
            y=alt.Y("mean:Q", title=None, scale=scale)
        )
        interval = base.mark_rule(strokeWidth=6, color=GREY).encode(y="low:Q", y2="high:Q")
        below = (
            alt.Chart(alt.Data(values=[{"floor": floor}]))
            .mark_rule(strokeDash=[4, 3], color=VERMILION)
            .encode(y="floor:Q")
        )
        chart = (below + interval + line).properties(width=WIDTH, height=150)
        charts.append(svg(chart, f"robust{len(charts)}", f"{TITLES.get(study, study)}: {METRICS[metric].title}"))
    return charts


def level_of(row: Row) -> str:
    """What the level of a row of robustness/scores.csv is called."""
    return level_name(row["study"], float(row["level"]) if row["level"] else None)


def _tick(row: Row) -> str:
    """A level in the unit of `AXES`: word errors as they were measured."""
    name = level_of(row)
    if name == "clean" or not (measured := row.get("word_error_rate")):
        return name.removesuffix(" dB")
    return f"{float(measured):z.3f}"


def truth_charts(results: Results) -> list[str]:
    """Where scores are predicted: predicted over true ones, and how far off they are, of all seeds."""
    import altair as alt

    pairs = [(float(row["true"]), float(row["predicted"])) for row in results.predictions if row["true"]]
    true, predicted = np.array(pairs).T
    low, high = float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))
    step = (high - low) / CELLS or 1.0
    counts, _, _ = np.histogram2d(true, predicted, CELLS, [[low, low + CELLS * step]] * 2)
    cells = [
        {"true": low + (i + 0.5) * step, "predicted": low + (j + 0.5) * step, "count": int(counts[i, j])}
        for i, j in np.argwhere(counts > 0).tolist()
    ]
    domain = alt.Scale(domain=[low, low + CELLS * step], nice=False)
    points = (
        alt.Chart(alt.Data(values=cells), title="predicted over true score, all seeds")
        .mark_circle(opacity=0.75, color=BLUE)
        .encode(
            x=alt.X("true:Q", scale=domain, title="true"),
            y=alt.Y("predicted:Q", scale=domain, title="predicted"),
            size=alt.Size("count:Q", scale=alt.Scale(range=[6, 160]), legend=None),
        )
    )
    ends = alt.Data(values=[{"x": low, "y": low}, {"x": low + CELLS * step, "y": low + CELLS * step}])
    right = alt.Chart(ends).mark_line(color=VERMILION, strokeDash=[4, 3]).encode(x="x:Q", y="y:Q")
    errors, edges = np.histogram(predicted - true, CELLS)
    bars = [
        {"from": float(a), "to": float(b), "count": int(n)} for n, a, b in zip(errors, edges, edges[1:], strict=False)
    ]
    residuals = (
        alt.Chart(alt.Data(values=bars), title="predicted minus true score, all seeds")
        .mark_bar(color=BLUE)
        .encode(x=alt.X("from:Q", title="error", bin="binned"), x2="to:Q", y=alt.Y("count:Q", title="turns"))
    )
    return [
        svg((points + right).properties(width=WIDTH, height=WIDTH), "truth", "Predicted over true scores"),
        svg(residuals.properties(width=WIDTH, height=150), "residuals", "How far predicted scores are off"),
    ]


def _finite(text: str) -> float | None:
    """Of one conversation an interval has no ends."""
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None
