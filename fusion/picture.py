"""Bars with intervals, one for each row of an ablation table."""

import io
import math
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from fusion.comparison import Row

# of Okabe and Ito, which all kinds of colour vision tell apart
BASE_COLOUR, ROW_COLOUR, SURE_COLOUR = "#0072B2", "#BBBBBB", "#E69F00"


def draw_bars(rows: Sequence[Row], label: str, bounds: tuple[float, float], level: float, kind: str) -> bytes:
    """The picture as `kind` (svg or png): rows from top to bottom, a dashed line at the first one.

    Args:
        label: below the axis.
        bounds: of the scores that there can be.
        level: rows whose corrected p value is below it have a colour and a star.
    """
    figure = Figure(figsize=(8, 0.9 + 0.26 * len(rows)), layout="constrained")
    axes = figure.subplots()
    sure = [row.difference is not None and row.difference.p_holm < level for row in rows]
    colours = [SURE_COLOUR if one else ROW_COLOUR for one in sure]
    colours[0] = BASE_COLOUR
    means = [row.mean for row in rows]
    widths = [
        [_drawn(row.mean - row.interval.low) for row in rows],
        [_drawn(row.interval.high - row.mean) for row in rows],
    ]
    axes.barh(range(len(rows)), means, color=colours, height=0.72)
    axes.errorbar(means, range(len(rows)), xerr=widths, fmt="none", ecolor="black", elinewidth=1, capsize=2.5)
    axes.axvline(means[0], color=BASE_COLOUR, linestyle="--", linewidth=1)
    names = [f"{row.variant.name} *" if one else row.variant.name for row, one in zip(rows, sure, strict=True)]
    axes.set_yticks(range(len(rows)), [name.replace("$", r"\$") for name in names])
    axes.invert_yaxis()
    axes.margins(y=0.5 / max(len(rows), 1))
    ends = [end for row in rows for end in (0.0, row.mean, row.interval.low, row.interval.high) if math.isfinite(end)]
    axes.set_xlim(max(bounds[0], 1.02 * min(ends)), min(bounds[1], 1.02 * max(ends)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"{label}\n* differs from its base, corrected p < {level:.2g}", fontsize=8)
    axes.tick_params(labelsize=8)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "erc-fusion"}):  # else its ids are random
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _drawn(width: float) -> float:
    """A width without an end is not drawn: a single conversation says nothing about others."""
    return width if math.isfinite(width) else math.nan
