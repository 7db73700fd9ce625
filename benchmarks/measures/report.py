"""Results as the tables of the README, in Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fusion.tables import markdown_table
from measures.agreement import Agreement
from measures.encoding import EXACT, NAIVE, REDUCED, SINGLE, CorpusResult
from measures.extraction_runs import FilesResult, GrowthResult
from measures.layouts import GZIP, STORE
from measures.machine import Machine
from measures.storing import COPY, StoreResult
from measures.timing import Spread

VARIANTS = {
    SINGLE: "(a) transformers, one clip at a time",
    NAIVE: "(b) transformers, random batches of 32",
    EXACT: "(c) this extractor",
    REDUCED: "(c) this extractor, bfloat16",
}
LAYOUTS = {
    COPY: "copy in memory",
    STORE: "this store",
    GZIP: "data set per utterance, gzip",
    "data sets": "data set per utterance",
    "npy": ".npy file per utterance",
}


@dataclass
class Results:
    """Everything that a run measured; parts that were not asked for are empty."""

    machine: Machine
    encoder: str
    repeats: int
    encoding: list[CorpusResult] = field(default_factory=list)
    agreement: list[Agreement] = field(default_factory=list)
    files: list[FilesResult] = field(default_factory=list)
    growth: GrowthResult | None = None
    store: StoreResult | None = None


def markdown(results: Results) -> str:
    """All tables of what was measured."""
    machine = results.machine
    parts = [
        f"{machine.processor}, {machine.cores} cores ({machine.threads} threads), device {machine.device}, "
        f"torch {machine.torch}; encoder {results.encoder}; medians of {results.repeats} (lowest-highest)."
    ]
    for corpus in results.encoding:
        parts += [_encoding_title(corpus), _encoding_table(corpus)]
    if results.encoding and all(variant.name != REDUCED for variant in results.encoding[0].variants):
        parts.append("No bfloat16: this device is not built for it.")
    if results.agreement:
        parts.append(_agreement_table(results.agreement))
    if results.files:
        parts.append(_files_table(results.files))
    if results.growth:
        parts.append(_growth_line(results.growth))
    if results.store:
        parts += [_store_title(results.store), _store_table(results.store)]
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; the first column is text, all others are numbers.

    >>> print(table(["layout", "s"], [["npy", "1.5"]]))
    | layout | s |
    | --- | ---: |
    | npy | 1.5 |
    """
    return "\n".join(markdown_table(header, rows))


def _encoding_title(corpus: CorpusResult) -> str:
    rates = {variant.precision: variant.matrix_rate for variant in corpus.variants}
    products = ", ".join(f"{rate.median / 1e12:.3g} TFLOP/s in {name}" for name, rate in rates.items())
    return (
        f"**The encoder alone, {corpus.title}**: {corpus.clips} clips, {_length(corpus.audio_seconds)}; "
        f"{corpus.gigaflops_a_second:.1f} GFLOP a second of audio; matrix product {products}."
    )


def _encoding_table(corpus: CorpusResult) -> str:
    header = ["", "precision", "hours a minute", "× (a)", "× the floor", "share of floor", "padding", "memory"]
    rows = [
        [
            VARIANTS[variant.name],
            variant.precision + (f", {variant.halved} batches halved" if variant.halved else ""),
            f"{variant.audio_hours_a_minute:.3g}",
            str(variant.times_single),
            str(variant.times_floor),
            percent(variant.floor_share),
            percent(variant.padding_share),
            memory(variant.peak_bytes),
        ]
        for variant in corpus.variants
    ]
    return table(header, rows)


def _agreement_table(agreements: Sequence[Agreement]) -> str:
    header = ["features", "frames", "lowest cosine", "mean cosine", "largest difference", "largest value"]
    names = {SINGLE: "(a)", NAIVE: "(b)", EXACT: "(c) float32", REDUCED: "(c) bfloat16"}
    rows = [
        [
            f"{names[found.of]} to {names[found.to]}, {found.corpus}",
            str(found.frames),
            f"{found.lowest_cosine:.6f}",
            f"{found.mean_cosine:.6f}",
            f"{found.largest_difference:.1e}",
            f"{found.largest_value:.1f}",
        ]
        for found in agreements
    ]
    return table(header, rows)


def _files_table(files: Sequence[FilesResult]) -> str:
    header = ["`pipeline-audio` from files", "audio", "hours a minute", "s", "decoding", "padding", "memory", "GPU"]
    rows = [
        [
            f"{found.title} ({found.container})",
            _length(found.audio_seconds),
            f"{found.audio_hours_a_minute:.3g}",
            str(found.seconds),
            percent(found.decode_share),
            percent(found.padding_share),
            memory(found.peak_bytes),
            memory(found.gpu_peak_bytes),
        ]
        for found in files
    ]
    return table(header, rows)


def _growth_line(growth: GrowthResult) -> str:
    ratio = "not measured" if growth.peak_ratio is None else f"{growth.peak_ratio:.3f} times"
    return (
        f"**{growth.growth} times as many clips** ({growth.clips} clips, {_length(growth.audio_seconds)}; "
        f"encoder {growth.encoder}): {growth.time_ratio} times the time, {ratio} the memory "
        f"({memory(growth.peak_bytes)}, then {memory(growth.grown_peak_bytes)})."
    )


def _store_title(store: StoreResult) -> str:
    return f"**Features on disk**: {store.utterances} utterances, {store.bytes / 1e6:.0f} MB of float16."


def _store_table(store: StoreResult) -> str:
    header = ["layout", "MB", "write s", "× store", "read s", "× store", "× copy", "read again s", "× copy"]
    rows = [
        [
            LAYOUTS[layout.name],
            f"{layout.bytes / 1e6:.0f}",
            _or_none(layout.write_seconds),
            _or_none(layout.write_to_store),
            str(layout.read_seconds),
            str(layout.read_to_store),
            str(layout.read_to_copy),
            str(layout.second_read_seconds),
            str(layout.second_read_to_copy),
        ]
        for layout in store.layouts
    ]
    return table(header, rows)


def _or_none(values: Spread | None) -> str:
    return "" if values is None else str(values)


def percent(share: float) -> str:
    """A share, for people."""
    return f"{100 * share:.1f} %"


def memory(size: int | None) -> str:
    """Bytes, for people; "" where they are not known."""
    return "" if size is None else f"{size / 2**20:.0f} MiB"


def _length(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 3_600 else f"{seconds / 3_600:.2f} h"
