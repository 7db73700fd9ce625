r"""Write an ablation table, its files together or not at all, the same bytes for the same runs but for their seconds.

    ablations.csv     a row for each set, every number
    ablations.md      the same for readers
    ablations.tex     a booktabs tabular for papers: \usepackage{booktabs}, then \input{ablations}
    ablations.svg, ablations.png     bars with intervals
    ablations.json    what was run, which rows prove little (`notes`), and the SHA-256 of the others

Each names in `run` what was run: a hash of the rows' parameters, the seeds, the features, section `evaluate`, the
version and the commit, which ablations.md spells out.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion.ablation.comparison import Comparison, Row
from fusion.ablation.variants import BASE, LINEAR, Variant, format_value
from fusion.checkpoint import VERSION
from fusion.evaluation import BLUE, FEW_CONVERSATIONS, ORANGE, draw_png, draw_svg, find_run, hash_files, other_results
from fusion.objective import METRICS
from fusion.params import EvaluateParams, FoldParams
from fusion.runtime import replace_files
from fusion.tables import (
    bounds,
    csv_text,
    escape_latex,
    escape_markdown,
    identified,
    isolated,
    json_text,
    latex_table,
    markdown_table,
    mean_std,
    number,
    number_of,
)

TABLE = "ablations"  # how `fusion.runtime.replacing` calls its files
COMPARED = ("seeds", "metric", "features", "evaluate", "folds")  # of two tables; rows may come along
ROW_COLOUR = "#BBBBBB"
WIDTH, STEP = 560, 20  # pixels: inside the axes, and of a row


def draw_bars(rows: Sequence[Row], label: str, bounds: tuple[float, float], level: float) -> Any:
    """The picture as a chart of altair: rows from top to bottom, a dashed line at the first one.

    Args:
        label: below the axis.
        bounds: of the scores that there can be.
        level: rows whose corrected p value is below it have a colour and a star.
    """
    import altair as alt

    values: list[dict[str, Any]] = [
        {"name": row.variant.name + " *" * _is_sure(row, level), "mean": row.mean,
         "low": _drawn(row.interval.low, row), "high": _drawn(row.interval.high, row),
         "colour": BLUE if row is rows[0] else ORANGE if _is_sure(row, level) else ROW_COLOUR}
        for row in rows
    ]  # fmt: skip
    ends = [value[end] for value in values for end in ("mean", "low", "high")] + [0.0]
    domain = [max(bounds[0], 1.02 * min(ends)), min(bounds[1], 1.02 * max(ends))]
    title = [label, f"* differs from its base, corrected p < {level:.2g}"]
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=400))
    )
    bars = base.mark_bar(height=STEP * 0.72).encode(
        x=alt.X(
            "mean:Q",
            title=title,
            scale=alt.Scale(domain=domain, nice=False),
            axis=alt.Axis(grid=False, labelFlush=False),
        ),
        color=alt.Color("colour:N", scale=None),
    )
    intervals = base.mark_errorbar(color="black", ticks={"size": 8}).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    line = alt.Chart(alt.Data(values=values[:1])).mark_rule(strokeDash=[4, 3], color=BLUE).encode(x="mean:Q")
    return (bars + intervals + line).properties(width=WIDTH, height=alt.Step(STEP))


def _drawn(end: float, row: Row) -> float:
    """Of an interval; one without an end, since a single conversation says nothing about others, stops at the mean."""
    return end if math.isfinite(end) else row.mean


def write_table(comparison: Comparison, folder: Path, commit: str | None) -> None:
    """Write all files into `folder`, made where it is missing; `commit` is that of the code.

    Raises:
        OutputError: a file cannot be written.
    """
    run = describe_run(comparison, commit)
    label = f"{METRICS[comparison.metric].title} on {_tested(comparison)}, {_confidence(comparison)} (run {run['id']})"
    chart = draw_bars(comparison.rows, label, METRICS[comparison.metric].bounds, _level(comparison))
    contents: dict[str, str | bytes | None] = {
        "ablations.csv": table_csv(comparison, run),
        "ablations.md": table_md(comparison, run),
        "ablations.tex": table_tex(comparison, run),
        "ablations.svg": draw_svg(chart),
        "ablations.png": draw_png(chart, run["id"]),
    }
    contents["ablations.json"] = json_text(
        {"run": run, "notes": table_notes(comparison), "files": hash_files(contents)}
    )
    replace_files(folder, contents, TABLE)


def check_table(
    folder: Path, features: str, variants: Sequence[Variant], params: EvaluateParams, folds: FoldParams | None
) -> None:
    """See that no row is lost where this table (`features`: their digest) replaces the one in `folder`.

    Raises:
        OutputError: the one that is there has other rows, seeds, features or intervals.
    """
    if not (folder / "ablations.csv").exists():
        return
    found, wanted = find_run(folder / "ablations.json"), _identify(features, variants, params, folds)
    differing = [name for name in COMPARED if found.get(name) != wanted.get(name)]
    rows = found.get("rows", {})
    if lost := [name for name in rows if wanted["rows"].get(name) != rows[name]]:
        differing.append(f"rows: {', '.join(lost)}")
    if differing:
        raise other_results(folder / "ablations.csv", f" (other {', '.join(differing)})")


def headline(comparison: Comparison) -> str:
    """One line: how many rows, and the base row."""
    base, rest = comparison.rows[0], [row for row in comparison.rows if row.difference and row.model != LINEAR]
    sure = sum(_is_sure(row, _level(comparison)) for row in rest)
    score = mean_std(base.mean, base.std)
    idle = [
        f"{row.variant.name} ({len(row.unlearned)} of {len(comparison.ablation.seeds)} seeds)"
        for row in comparison.rows
        if row.unlearned
    ]
    return (
        f"{number_of(len(comparison.rows) - 1, 'row')} of {number_of(len(comparison.ablation.seeds), 'seed')}"
        f"{_over(comparison)}, "
        f"base test {comparison.metric} {score}, linear reference {comparison.rows[-1].mean:z.3f}"
        + (f"; {sure} of {len(rest)} differ from their base (Holm, {_level(comparison):.2g})" if rest else "")
        + (f"; not learned: {', '.join(idle)}" if idle else "")
    )


def _over(comparison: Comparison) -> str:
    count = comparison.ablation.count
    return "" if count == 1 else f" over {count} folds"


def describe_run(comparison: Comparison, commit: str | None) -> dict[str, Any]:
    """What was run; `id` is a short hash of the rest."""
    one = comparison.ablation
    run = _identify(one.features, one.variants, one.params, one.folds)
    return identified(run | {"device": one.device, "version": VERSION, "commit": commit})


def _identify(
    features: str, variants: Sequence[Variant], params: EvaluateParams, folds: FoldParams | None
) -> dict[str, Any]:
    train = variants[0].recipe.train
    return {
        "rows": {one.name: [one.base, one.recipe.digest] for one in variants},
        "seeds": ",".join(map(str, train.seeds)),
        "metric": train.metric,
        "features": features,
        "evaluate": params.model_dump(mode="json"),
        **({"folds": folds.model_dump(mode="json")} if folds else {}),
    }


def table_csv(comparison: Comparison, run: Mapping[str, Any]) -> str:
    """Every number; empty where there is none."""
    header = ["run", "name", "base", "overrides", "model", "seeds", "metric", "mean", "std", "low", "high"]
    header += ["ensemble", "validation", "difference", "difference_low", "difference_high", "p", "p_holm"]
    header += comparison.ablation.task.metrics
    rows = []
    for row in comparison.rows:
        variant, difference = row.variant, row.difference
        overrides = " ".join(f"{key}={format_value(value)}" for key, value in variant.overrides.items())
        numbers = [row.mean, row.std, row.interval.low, row.interval.high, row.ensemble, row.validation]
        if difference is None:
            numbers += [None] * 5
        else:
            numbers += [difference.mean, difference.interval.low, difference.interval.high]
            numbers += [difference.p, difference.p_holm]
        numbers += row.scores.values()
        seeds = "" if row.model == LINEAR else run["seeds"]
        cells = [run["id"], variant.name, variant.base, overrides, row.model, seeds]
        cells += [comparison.metric, *map(number, numbers)]
        rows.append([*cells, row.parameters, "" if row.seconds is None else f"{row.seconds:.1f}"])
    return csv_text([*header, "parameters", "seconds"], rows)


def table_md(comparison: Comparison, run: Mapping[str, Any]) -> str:
    """For readers. A difference is bold only where the corrected test says that it is one."""
    ablation, level = comparison.ablation, _level(comparison)
    others = [name for name in ablation.task.metrics if name != comparison.metric]
    interval = f"{ablation.params.confidence:.0%} interval"
    header = ["row", METRICS[comparison.metric].title, interval, "against", "difference", interval, "p", "p (Holm)"]
    header.insert(3, "ensemble")
    header += [METRICS[name].title for name in others]
    rows = []
    for row in comparison.rows:
        cells = [escape_markdown(row.variant.name), mean_std(row.mean, row.std), bounds(row.interval)]
        cells.append(f"{row.ensemble:z.3f}")
        if row.difference is None:
            cells += [""] * 5
        else:
            change = f"{row.difference.mean:+z.3f}"
            cells += [escape_markdown(row.variant.base or ""), f"**{change}**" if _is_sure(row, level) else change]
            cells += [bounds(row.difference.interval, signed=True), _p(row.difference.p), _p(row.difference.p_holm)]
        cells += [f"{row.scores[name]:z.3f}" for name in others]
        cells += [f"{row.validation:z.3f}", f"{row.parameters:,}", "" if row.seconds is None else f"{row.seconds:.1f}"]
        rows.append(cells)
    changes = [
        f"- {escape_markdown(one.name)}: "
        + ", ".join(f"`{key}: {format_value(one.overrides[key])}`" for key in one.overrides)
        for one in ablation.variants
        if one.base is not None
    ]
    return "\n".join(
        [
            f"# Ablations on {_tested(comparison)}",
            "",
            *(line for warning in ablation.copies for line in (f"**{escape_markdown(warning)}.**", "")),
            *markdown_table([*header, "validation", "parameters", "seconds"], rows),
            "",
            _explain(comparison),
            "",
            _against_linear(comparison),
            "",
            f"Row {BASE} is `{json.dumps(ablation.variants[0].recipe.to_json())}`.",
            "",
            *(["The others differ from it in:", "", *changes, ""] if changes else []),
            f"Run {run['id']}: features `{run['features'][:12]}`, seeds {run['seeds'].replace(',', ', ')}, `evaluate` "
            f"`{json.dumps(run['evaluate'])}`{_folds(run)}, {run['device']}, erc-fusion {run['version']}, "
            f"commit {run['commit'] or 'unknown'}.",
            "",
        ]
    )


def table_tex(comparison: Comparison, run: Mapping[str, Any]) -> str:
    """A tabular; the differences that the corrected test confirms are bold."""
    level, several = _level(comparison), len(comparison.ablation.seeds) > 1
    lines = [
        f"% erc-fusion {VERSION}, run {run['id']}, seeds {run['seeds']}, {comparison.metric} on {_tested(comparison)},",
        f"% {'mean and standard deviation over seeds' if several else 'a single seed'}, {_confidence(comparison)};",
        f"% a difference is bold where its corrected p is below {level:.2g}.",
        r"% Needs \usepackage{booktabs}.",
    ]
    header = ["Setting", METRICS[comparison.metric].title, "Interval", "Difference", "Interval", "$p$ (Holm)"]
    rows = []
    for row in comparison.rows:
        cells = [escape_latex(row.variant.name), mean_std(row.mean, row.std).replace(" ± ", r" $\pm$ ")]
        cells.append(f"[{bounds(row.interval, separator=', ')}]")
        if row.difference is None:
            cells += ["", "", ""]
        else:
            change = f"{row.difference.mean:+z.3f}"
            cells.append(r"$\mathbf{%s}$" % change if _is_sure(row, level) else f"${change}$")  # noqa: UP031
            cells.append(f"$[{bounds(row.difference.interval, True, ', ')}]$")
            p = _p(row.difference.p_holm)
            cells.append(f"${p}$" if p.startswith("<") else p)
            if row.variant.base != BASE:
                cells[0] += f" (against {escape_latex(row.variant.base or '')})"
        rows.append(cells)
    return "\n".join([*lines, *latex_table("lllllr", header, rows), ""])


def _folds(run: Mapping[str, Any]) -> str:
    return f", `folds` `{json.dumps(run['folds'])}`" if "folds" in run else ""


def _explain(comparison: Comparison) -> str:
    ablation = comparison.ablation
    counted = ablation.task.counted(ablation.task.truth(ablation.test))
    ids = ablation.test.conversation_ids
    scored = {one for one, counts in zip(ids, counted.tolist(), strict=True) if counts}
    units, few = "conversations", ""
    if ablation.folds and ablation.folds.hold_out == "speaker":
        count = len(
            {unit for one, unit in zip(dict.fromkeys(ids), ablation.units.tolist(), strict=True) if one in scored}
        )
        units = f"speakers ({count} groups of speakers who share conversations)"
        if count < FEW_CONVERSATIONS:
            few = f" With so few of them intervals are wide, and no p is below {2 ** (1 - count):.2g}."
    if len(ablation.seeds) > 1:
        drawn = f"Intervals and tests count both what other {units} and what other seeds would change."
    else:
        drawn = f"With a single seed, intervals and tests count other {units} only, not other seeds."
    compared = sum(row.difference is not None for row in comparison.rows)
    lower = [metric.title for metric in ablation.task.metrics.values() if metric.lower_is_better]
    pooled = ""
    if ablation.folds:
        pooled = (
            f" Pooled over {ablation.count} folds (whole {ablation.folds.hold_out}s held out): each seed's predictions "
            "for the test utterances of all folds are scored as one set; validation is the mean over folds."
        )
    less = f" Of {', '.join(lower)} less is better." * bool(lower)
    return (
        f"{int(counted.sum())} {ablation.task.counted_are} of {len(scored)} conversations, "
        f"mean ± standard deviation of {number_of(len(ablation.seeds), 'seed')}. {drawn}{few} p: paired permutation "
        f"test of no difference; p (Holm): corrected for the number of rows that are compared ({compared}); a "
        f"difference is bold where it is below {_level(comparison):.2g}. Seconds: training of one seed, other runs "
        "beside it or not." + pooled + less
    )


def _tested(comparison: Comparison) -> str:
    count = comparison.ablation.count
    return "the test split" if count == 1 else f"the test splits of {count} folds"


def _against_linear(comparison: Comparison) -> str:
    """What the rows are held against, and which of them are not above it."""
    ablation, linear = comparison.ablation, comparison.rows[-1]
    floors = ", ".join(f"{name} {score:z.3f}" for name, score in ablation.floors.items())
    said = (
        f"Row {LINEAR} is the linear reference on what row {BASE} sees "
        f"({escape_markdown(ablation.linear.note)}): {linear.mean:z.3f}. Floors: {floors}. Ensemble: the "
        "mean of the calibrated answers of all seeds."
    )
    return said + "".join(f" **{escape_markdown(note)}**" for note in table_notes(comparison))


def table_notes(comparison: Comparison) -> list[str]:
    """Sentences: which rows are not above what they are held against, and which have not learned."""
    ablation, metric = comparison.ablation, METRICS[comparison.metric]
    *rows, linear = comparison.rows
    notes: list[str] = []
    floor = (min if metric.lower_is_better else max)(ablation.floors.values())
    for name, level, end in (
        ("above the linear reference", linear.mean, [row.mean for row in rows]),
        ("with an interval that excludes the better floor", floor,
         [row.interval.high if metric.lower_is_better else row.interval.low for row in rows]),
    ):  # fmt: skip
        below = [
            isolated(row.variant.name)
            for row, reached in zip(rows, end, strict=True)
            if (reached >= level if metric.lower_is_better else reached <= level)
        ]
        notes += [f"Not {name}: {', '.join(below)}."] if below else []
    seeds = len(ablation.seeds)
    idle = [f"{isolated(row.variant.name)} ({signs})" for row in rows if (signs := unlearned(row, seeds))]
    return notes + ([f"Has not learned: {', '.join(idle)}."] if idle else [])


def unlearned(row: Row, seeds: int) -> str:
    """How many seeds have not learned, and why; "" where all have."""
    return f"{len(row.unlearned)} of {number_of(seeds, 'seed')}: {row.unlearned[0]}" if row.unlearned else ""


def _level(comparison: Comparison) -> float:
    """Of the tests, to go with the intervals."""
    return 1 - comparison.ablation.params.confidence


def _is_sure(row: Row, level: float) -> bool:
    return row.difference is not None and row.difference.p_holm < level


def _confidence(comparison: Comparison) -> str:
    held = comparison.ablation.folds
    units = "speakers" if held and held.hold_out == "speaker" else "conversations"
    drawn = f"{units} and seeds" if len(comparison.ablation.seeds) > 1 else f"{units} alone"
    return f"{comparison.ablation.params.confidence:.0%} intervals over {drawn}"


def _p(value: float) -> str:
    return f"{value:z.3f}" if value >= 0.001 else "< 0.001"
