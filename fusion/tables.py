"""How numbers and tables are written in result files: JSON, CSV, Markdown, LaTeX."""

import csv
import hashlib
import io
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fusion.objective import Interval

DIGITS = 6  # behind the point, wherever programs read a number
LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", **{symbol: "\\" + symbol for symbol in "&%$#_{}"},
}  # fmt: skip
MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~$!&])")
ISOLATE, POP, END = "\u2068", "\u202c", "\u2069"  # of UAX #9: an isolate, and what closes embeddings and isolates
CLOSED_BY = dict.fromkeys("\u202a\u202b\u202d\u202e", POP) | dict.fromkeys("\u2066\u2067\u2068", END)
DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069]")


def rounded(value: float) -> float:
    """A number as JSON files give it; zero has no sign, here and wherever numbers become text (`z` in their format).

    >>> rounded(-1e-9), number(-1e-9), mean_std(-1e-9, None), bounds(Interval(-1e-9, 0.5), signed=True)
    (0.0, '0.000000', '0.000', '+0.000 to +0.500')
    """
    return round(value, DIGITS) + 0.0  # -0.0 + 0.0 is 0.0


def spread(mean: float, std: float | None, interval: Interval | None = None) -> dict[str, float | None]:
    """A mean as JSON files give it: with its deviation, which a single seed lacks, and its interval."""
    ends = {} if interval is None else ends_of(interval)
    return {"mean": rounded(mean), "std": None if std is None else rounded(std), **ends}


def ends_of(interval: Interval) -> dict[str, float | None]:
    """An interval as JSON files give it: they know no infinity, which a single conversation gives."""
    ends = {"low": interval.low, "high": interval.high}
    return {name: rounded(end) if math.isfinite(end) else None for name, end in ends.items()}


def interval_of(content: Mapping[str, Any]) -> Interval:
    """The inverse of `ends_of`."""
    low, high = content["low"], content["high"]
    return Interval(-math.inf if low is None else float(low), math.inf if high is None else float(high))


def json_text(content: Mapping[str, Any]) -> str:
    """The content of a JSON file."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def digested(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with its own hash, by which `is_whole` knows it again."""
    return {**content, "digest": hashlib.sha256(json_text(content).encode(errors="surrogatepass")).hexdigest()}


def is_whole(content: Mapping[str, Any]) -> bool:
    """Whether what was read is what was written.

    >>> is_whole(digested({"mean": 0.5})), is_whole(digested({"mean": 0.5}) | {"mean": 0.7})
    (True, False)
    """
    return content == digested({name: value for name, value in content.items() if name != "digest"})


def identified(run: Mapping[str, Any]) -> dict[str, Any]:
    """What was run, with `id`, a short hash of the rest."""
    return {"id": hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:12], **run}


def number(value: float | None) -> str:
    """A number as CSV files give it, empty where there is none.

    >>> number(0.5), number(None)
    ('0.500000', '')
    """
    return "" if value is None else f"{value:z.{DIGITS}f}"


def number_of(count: int, noun: str) -> str:
    """A number of things, in words.

    >>> number_of(1, "seed"), number_of(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def mean_std(mean: float, std: float | None) -> str:
    """Mean ± standard deviation, which a single seed lacks.

    >>> mean_std(0.5, 0.25), mean_std(0.5, None)
    ('0.500 ± 0.250', '0.500')
    """
    return f"{mean:z.3f}" if std is None else f"{mean:z.3f} ± {std:.3f}"


def bounds(interval: Interval, signed: bool = False, separator: str = " to ") -> str:
    """Both ends of an interval, with their signs where `signed`."""
    style = "+z.3f" if signed else "z.3f"
    return f"{interval.low:{style}}{separator}{interval.high:{style}}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def isolated(text: str) -> str:
    """`text` whose marks of direction end with it: one that overrides turns round no words of the page beside it.

    >>> ascii(isolated("joy \\u202ereversed")), isolated("joy")
    ("'\\\\u2068joy \\\\u202ereversed\\\\u202c\\\\u2069'", 'joy')
    """
    if not DIRECTIONS.search(text):
        return text
    shown, closing = [], list[str]()
    for character in text:
        if character in CLOSED_BY:
            closing.append(CLOSED_BY[character])
        elif character == END:
            if END not in closing:
                continue  # it would close what surrounds the text
            while closing.pop() != END:
                pass
        elif character == POP:
            if closing[-1:] != [POP]:
                continue
            closing.pop()
        shown.append(character)
    return "".join([ISOLATE, *shown, *reversed(closing), END])


def escape_markdown(text: str) -> str:
    r"""`text` on one line, as Markdown that shows it.

    >>> print(escape_markdown("joy | *very*\n# happy"))
    joy \| \*very\* \# happy
    """
    return isolated(MARKDOWN.sub(r"\\\1", " ".join(text.split())))


def escape_latex(text: str) -> str:
    r"""`text` as LaTeX prints it.

    >>> escape_latex("gate_1 & 50%")
    'gate\\_1 \\& 50\\%'
    """
    return "".join(LATEX.get(symbol, symbol) for symbol in DIRECTIONS.sub("", " ".join(text.split())))


def latex_table(columns: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    r"""The lines of a booktabs tabular of cells that are LaTeX; `columns` are their alignments, such as "lr".

    A row that begins with `[` or `*` gets `{}` in front, for LaTeX takes these for options of the line end above it.

    >>> latex_table("lr", ["a", "b"], [["[c]", "1"], ["*d", "2"]])[4:6] == [r"{}[c] & 1 \\", r"{}*d & 2 \\"]
    True
    """
    lines = [" & ".join(cells) + r" \\" for cells in (header, *rows)]
    first, *others = ["{}" + line if line.startswith(("[", "*")) else line for line in lines]
    begin = rf"\begin{{tabular}}{{{columns}}}"
    return [begin, r"\toprule", first, r"\midrule", *others, r"\bottomrule", r"\end{tabular}"]


csv.field_size_limit(sys.maxsize)  # of what is read: a text may be a whole interview
FORMULA = re.compile(r"[=+\-@\t\r]")
PLAIN_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def plain_cell(text: str) -> str:
    """A name or text that no spreadsheet takes for a formula.

    >>> plain_cell("=1+1"), plain_cell("-5"), plain_cell("Ross")
    ("'=1+1", '-5', 'Ross')
    """
    return f"'{text}" if FORMULA.match(text) and not PLAIN_NUMBER.fullmatch(text) else text


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The content of a CSV file."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()
