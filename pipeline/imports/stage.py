"""`pipeline-import`: a table of utterances and features that others made -> one self-contained feature file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.datasets import Corpus
from pipeline.datasets.table import read
from pipeline.errors import DataError
from pipeline.imports.entries import Source, value_of
from pipeline.imports.files import Files, split_key
from pipeline.imports.formats import Known
from pipeline.imports.layout import Given, read_source
from pipeline.imports.matching import Match, Row, match
from pipeline.imports.values import (
    LabelCheck,
    Read,
    Survey,
    as_rows,
    by_speaker,
    check_finite,
    not_finite,
    small,
    stored_dtype,
    survey,
    write_values,
)
from pipeline.join import table_of
from pipeline.manifest import Utterance, label_names
from pipeline.params import Columns, DatasetParams, ImportParams
from pipeline.preparation import label_warnings, note_validation, settle, split_warnings
from pipeline.settings import sole_writer
from pipeline.store import Contents, Part, measure_columns, read_features, split_copies, write_joint

NAMED = 5  # utterances that are named in a line of the summary


@dataclass(frozen=True)
class Imported:
    """What was written, and what a user should know."""

    output: Path
    utterances: int
    digest: str
    lines: list[str]

    def summary(self) -> str:
        """What `pipeline-import` prints."""
        return "\n".join([*self.lines, f"{self.output}: {self.utterances} utterances, digest {self.digest[:12]}"])


@dataclass(frozen=True)
class _Modality:
    """One modality, matched and looked through once."""

    name: str
    found: Match
    survey: Survey  # as the values came
    read: Read
    alone: int = 0  # utterances that are the only row of their speaker, where rows are normalised by speaker


def import_features(
    table: Path | None,
    given: Sequence[Given],
    output: Path,
    params: ImportParams,
    dataset: DatasetParams,
    strict: bool = False,
    overwrite: bool = False,
) -> Imported:
    """Write the feature file of the utterances in `table` (None: those that a source names).

    Every utterance is kept; one without features has that modality empty. Values that are refused leave no file.

    Raises:
        DataError: something cannot be read, matched or stored; with `strict`, an utterance has no features, or
            features have no utterance.
        StoreError: `output` cannot be written, or holds something else and `overwrite` is not given.
    """
    if not given:
        raise DataError("nothing to import: name features with --audio, --text or both")
    if params.normalise == "speaker" and not any(part.modality == "audio" for part in given):
        raise DataError("import.normalise is speaker: of audio, and there is none; set import.normalise=none")
    if table is not None and not table.exists():
        raise DataError(f"{table}: no such table; fix --table")
    _check_output(table, given, output)
    with sole_writer(output):
        settled = None if table is None else _corpus_of(table, dataset)
        with Files(Known() if settled is None else _known(settled[0])) as files:
            sources = [read_source(part, params, files) for part in given]
            corpus, dataset = settled or _told_by(sources, dataset)
            rows = _rows(corpus, dataset)
            modalities = [
                _look_through(part.modality, match(source, rows), rows, params)
                for part, source in zip(given, sources, strict=True)
            ]
            ids = [row.utterance.id for row in rows]
            notes = [*corpus.notes, *note_validation(corpus.turns, dataset), *files.notes]
            drafts = [row.utterance for row in rows]
            notes += [*label_warnings(drafts, dataset), *split_warnings(drafts, corpus.turns, dataset)]
            for modality in modalities:
                check_finite(modality.survey, ids, modality.name, params)
                notes += filter(None, [small(modality.survey, modality.name, params)])
                if strict:
                    _check_complete(modality, ids)
                if modality.found.source.names is None and table is not None and _is_manifest(table):
                    notes.append(
                        f"{modality.found.source.where}: has no names, so it is taken to be in the order of {table}, "
                        "which is sorted by split, conversation and turn"
                    )
            _write(output, [row.utterance for row in rows], modalities, params, dataset.source, overwrite)
        lines = [f"repaired: {count} {what}" for what, count in corpus.repaired.most_common()]
        lines += [f"note: {note}" for note in notes]
        lines += [line for modality in modalities for line in _describe(modality, ids, params)]
        features = read_features(output)
        for modality in modalities:
            part: Part = getattr(features, modality.name)
            part.check()
            columns = measure_columns(part.values)
            lines += [f"{modality.name}: {oddities}" for oddities in [columns.oddities()] if oddities]
        lines += [f"warning: {line}" for line in split_copies(Contents.of(features), features.utterances.splits)]
        return Imported(output, len(rows), features.digest, lines)


def _write(
    output: Path,
    utterances: Sequence[Utterance],
    modalities: Sequence[_Modality],
    params: ImportParams,
    source: str,
    overwrite: bool,
) -> None:
    ids = [utterance.id for utterance in utterances]
    names = label_names(utterances, source)
    output.parent.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Part] = {
        modality.name: write_values(modality.read, ids, modality.name, modality.survey, params, output)
        for modality in modalities
    }
    write_joint(output, table_of(utterances, names), names, parts, copy=True, overwrite=overwrite)


def _check_output(table: Path | None, given: Sequence[Given], output: Path) -> None:
    sources = [
        split_key(name)[0] for part in given for name in (part.features, part.lengths, part.mask, part.ids) if name
    ]
    if output.resolve() in [path.resolve() for path in (*sources, *([table] if table else []))]:
        raise DataError(f"{output}: is one of the files to import; name another --output")


def _corpus_of(table: Path, dataset: DatasetParams) -> tuple[Corpus, DatasetParams]:
    """The turns of a table, and the parameters that settle them."""
    at = dataset.model_copy(update={"name": "table", "root": str(table.parent), "table": table.name})
    if _is_manifest(table):  # whose columns are its own, and whose labels and splits are settled
        at = at.model_copy(update={"columns": Columns(), "labels": {}, "split": "given"})
        return replace(read(at, to_encode=False), notes=[]), at
    return read(at, to_encode=False), at


def _known(corpus: Corpus) -> Known:
    """What a CSV of vectors may call the columns and the utterances of a table."""
    ids = [turn.id for turn in corpus.turns if turn.id is not None]
    recordings = [PurePosixPath(turn.audio).stem for turn in corpus.turns if turn.audio is not None]
    names = [names for names in (ids, recordings) if len(names) == len(corpus.turns)]
    return Known(corpus.columns, names)


def _told_by(sources: Sequence[Source], dataset: DatasetParams) -> tuple[Corpus, DatasetParams]:
    """The same, where the features' own files hold the turns."""
    for source in sources:
        if source.turns is not None:
            path = split_key(source.where)[0]
            at = dataset.model_copy(update={"name": "table", "root": str(path.parent), "table": path.name})
            note = f"no table: conversations, splits and labels are those of {source.where}"
            return Corpus(source.turns(), notes=[note]), at
    raise DataError(
        f"{sources[0].where}: names no conversations, splits and labels; name a table of utterances with --table"
    )


def _is_manifest(table: Path) -> bool:
    """Whether a table is what `pipeline-prepare` wrote."""
    if table.suffix != ".jsonl":
        return False
    with table.open(encoding="utf-8", errors="replace") as file:
        try:
            first = json.loads(file.readline())
        except ValueError:
            return False
    return isinstance(first, dict) and {"id", "conversation", "turn", "split", "samples", "status"} <= first.keys()


def _rows(corpus: Corpus, dataset: DatasetParams) -> list[Row]:
    """The utterances in manifest order. Recordings are not looked for: the features are there already."""
    turns = [
        replace(turn, text=turn.id or f"row {place}", audio=None, start=None, end=None, issues=())
        for place, turn in enumerate(corpus.turns, start=1)
    ]
    places = {id(turn): place for place, turn in enumerate(turns)}
    settled = settle(turns, dataset)
    return [Row(utterance, corpus.turns[places[id(turn)]], places[id(turn)]) for utterance, turn in settled]


def _look_through(name: str, found: Match, rows: Sequence[Row], params: ImportParams) -> _Modality:
    ids = [row.utterance.id for row in rows]
    read = partial(_read, found, name)
    labels = LabelCheck([row.utterance.label for row in rows], [row.utterance.score for row in rows])
    seen = survey(lambda index: labels.see(index, read(index)), ids, name)
    where = f"{name}: {found.source.where}"
    labels.check(where)
    if name == "audio" and params.normalise == "speaker":
        return _Modality(name, found, seen, *by_speaker(read, [row.utterance.speaker for row in rows], where))
    return _Modality(name, found, seen, read)


def _read(found: Match, modality: str, index: int) -> np.ndarray:
    entry = found.entries[index]
    where = f"{modality}: {found.source.where}" + ("" if entry is None else f": '{found.source.name(entry)}'")
    return as_rows(None if entry is None else value_of(found.source.entries[entry]), where)


def _missing(modality: _Modality, ids: Sequence[str]) -> list[str]:
    return [name for name, entry in zip(ids, modality.found.entries, strict=True) if entry is None]


def _empty(modality: _Modality, ids: Sequence[str]) -> list[str]:
    pairs = zip(ids, modality.found.entries, modality.survey.rows, strict=True)
    return [name for name, entry, rows in pairs if entry is not None and not rows]


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _describe(modality: _Modality, ids: Sequence[str], params: ImportParams) -> list[str]:
    name, found, seen = modality.name, modality.found, modality.survey
    dtypes = " and ".join(sorted(seen.dtypes))
    lines = [
        f"{name}: {found.source.where}: {sum(seen.rows)} rows x {seen.dim}, {dtypes} stored as "
        f"{stored_dtype(seen, params).name}, matched by {found.rule}"
    ]
    if missing := _missing(modality, ids):
        lines.append(f"{name}: {len(missing)} utterances are not in it, their {name} is empty: {_some(missing)}")
    if empty := _empty(modality, ids):
        lines.append(f"{name}: {len(empty)} utterances are there with nothing in them: {_some(empty)}")
    if found.unused:
        lines.append(f"{name}: {len(found.unused)} of its entries are no utterance: {_some(found.unused)}")
    if found.source.beyond:
        lines.append(
            f"{name}: {len(found.source.beyond)} entries hold values behind their length, which are left out; if the "
            "padding is in front, give a mask"
        )
    if modality.alone:
        lines.append(
            f"{name}: {modality.alone} utterances became zeros, because each is its speaker's only row "
            "(import.normalise: speaker)"
        )
    if seen.not_finite and params.not_finite == "zero":
        lines.append(f"{name}: zeros in place of {not_finite(seen, ids)}")
    return lines


def _check_complete(modality: _Modality, ids: Sequence[str]) -> None:
    name = modality.name
    lacking = [*_missing(modality, ids), *_empty(modality, ids)]
    if lacking:
        raise DataError(f"{name}: {len(lacking)} utterances have no features: {_some(lacking)}; or leave --strict out")
    if unused := modality.found.unused:
        raise DataError(f"{name}: {len(unused)} entries are no utterance: {_some(unused)}; or leave --strict out")
