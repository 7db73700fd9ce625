"""How pictures look, and how they are drawn: altair's charts as SVG or PNG, by vl-convert, without a browser.

The same chart gives the same bytes. Colours are Okabe and Ito's, which all kinds of colour vision tell apart, two of
them darkened: all stand out from a white page and from a dark one at 3:1 or more.
"""

import json
import resource
import struct
import zlib
from typing import Any

from fusion.errors import OutputError

BLUE, SKY, ORANGE, GREEN, VERMILION = "#0072B2", "#3E97CC", "#C58800", "#009E73", "#D55E00"
GREY = "#87909a"  # of intervals: seen on white and on black
INK = "#222222"  # of text and rules on white
HEADER = 33  # bytes of a PNG before its first optional chunk
FILES = 64  # open at once, which is ample for drawing
FONT = "Liberation Sans, Arial, sans-serif"  # vl-convert brings the first along, so no machine's own fonts matter


def draw_svg(chart: Any, ink: str = INK, background: str = "white", font: str = FONT) -> str:
    """The chart as SVG, which escapes its text and holds no script; `ink` is the colour of text and rules."""
    drawn: str = _convert("vegalite_to_svg", _specify(chart, ink, background, font))
    return drawn


def draw_png(chart: Any, run: str = "") -> bytes:
    """The chart as PNG, two pixels for each of its own; its metadata have the id of the `run` (tEXt)."""
    drawn: bytes = _convert("vegalite_to_png", _specify(chart, INK, "white", FONT), scale=2)
    note = b"tEXt" + b"run\0" + run.encode("latin-1")
    chunk = struct.pack(">I", len(note) - 4) + note + struct.pack(">I", zlib.crc32(note))
    return drawn[:HEADER] + chunk + drawn[HEADER:]


def _convert(how: str, chart: str, **options: Any) -> Any:
    """What vl-convert makes of a chart; it opens files and threads of its own to do so, and panics without them."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= allowed < FILES:  # -1: no limit
        raise OutputError(
            f"charts cannot be drawn with only {allowed} files open at once; allow {FILES}: ulimit -n {FILES}"
        )
    import vl_convert

    return getattr(vl_convert, how)(chart, **options)


def _specify(chart: Any, ink: str, background: str, font: str) -> str:
    """The chart in Vega-Lite, with a legend of one column below it."""
    styled = (
        chart.configure(background=background, font=font)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=ink, titleColor=ink, domainColor=ink, tickColor=ink, gridColor=ink, gridOpacity=0.15,
            labelFontSize=11, titleFontSize=11, titleFontWeight="normal", labelLimit=150,
        )
        .configure_legend(
            labelColor=ink, titleColor=ink, orient="bottom", direction="vertical", labelFontSize=11, title=None,
            symbolStrokeWidth=2,
        )
        .configure_header(labelColor=ink, titleColor=ink)
        .configure_title(color=ink, anchor="start", fontSize=12)
    )  # fmt: skip
    return json.dumps(styled.to_dict())
