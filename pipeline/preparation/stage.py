"""The `prepare` stage: a corpus as people have it -> a manifest in which every oddity is settled and named."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from pipeline.datasets import Counts, Turn, as_on_disk, read_corpus, unused_key_warnings
from pipeline.errors import DataError, suggest
from pipeline.manifest import OK, SPLITS, Utterance, check_utterances, holds_controls, label_names, manifest_order
from pipeline.media import Decoders, Recording, Stretch, hash_file
from pipeline.params import DatasetParams
from pipeline.preparation.counts import (
    ALL,
    COLUMNS,
    Difference,
    compare,
    copy_warnings,
    count,
    label_warnings,
    missing_name_warnings,
    modality_warnings,
    name_notes,
    note_unwatched,
    order_notes,
    repetition_notes,
    select,
    share_warnings,
    sound_warnings,
    split_warnings,
    statuses,
    target_warnings,
)
from pipeline.preparation.splits import assign_splits
from pipeline.settings import Threads, escape_unseen

NO_LINK = "no link: not a local folder of the user's\n"
MADE_HERE = ("models/encoders/audio", "models/encoders/text")  # dvc.yaml names them: stages write them
MANY = 10  # differences to the published counts, of which more are summed up in a line
NAMED = 10  # recordings that cannot be used and are named in the summary; the manifest has them all


def link_corpus(params: DatasetParams, link: Path) -> str:
    """Point `link` at `dataset.root`, with a note beside it, and say so.

    DVC takes paths as they stand, `~` for a folder of that name: dvc.yaml names this link. It is relative where
    `dataset.root` is, so that a project can be moved. The note is what a stage of DVC can write and another wait for:
    DVC follows links, and might clear away what lies behind one. It names the folder, so that DVC sees a link that
    points elsewhere than params.yaml does, as after a checkout.

    Raises:
        DataError: there is no such folder, it holds the link, something else has that name, or no link can be made.
    """
    root, place = Path(params.root), Path(os.path.realpath(link.parent))
    if not root.exists():  # of a user's own adapter it may be a file
        elsewhere = (
            ""
            if root.is_absolute()
            else f" in {Path.cwd()} (runs of dvc exp --temp and --queue work in another folder: give an absolute path)"
        )
        raise DataError(f"dataset.root {params.root!r} does not exist{elsewhere}; name the folder of the corpus")
    if place.is_relative_to(os.path.realpath(root)):
        raise DataError(
            f"dataset.root {params.root!r} holds what dvc.yaml writes ({link.parent}); give the corpus a folder of its "
            "own, best outside the project, where Git does not see it, such as ~/corpora/mine"
        )
    if link.exists() and not link.is_symlink():
        raise DataError(f"{link}: not a link, and in the way of one to the corpus; move it elsewhere")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        _point(link, root)
    except OSError as error:
        raise DataError(
            f"{link}: no link can be made here ({error.strerror}), and DVC needs one to the corpus; "
            f"move the project to a file system that has links, or write dataset.root for {link} in dvc.yaml"
        ) from None
    link.with_name(f"{link.name}.txt").write_text(f"{link.name} is a link to {params.root}\n", encoding="utf-8")
    return f"{link}: a link to {params.root}"


def link_encoders(encoders: Mapping[str, str], folder: Path) -> str:
    """Make `folder` hold a link to each encoder that is a local folder, by its key of params.yaml, and say which.

    DVC follows them, and so notices weights that change in a folder which keeps its name. Where a key names no folder,
    or one that a stage writes, a file that never changes lies in place of the link. The note beside `folder` is as that
    of `link_corpus`.

    Raises:
        DataError: `folder` is something else, or holds something else.
    """
    there = list(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    if os.path.lexists(folder) and (
        not folder.is_dir() or folder.is_symlink() or not all(_made_by_link_encoders(one) for one in there)
    ):
        raise DataError(f"{folder}: not made by this command, and in the way of links to encoders; move it elsewhere")
    folder.mkdir(parents=True, exist_ok=True)
    for one in there:
        one.unlink()
    made_here = [os.path.realpath(path) for path in MADE_HERE]
    local = {
        key: name for key, name in encoders.items() if Path(name).is_dir() and os.path.realpath(name) not in made_here
    }
    for key in encoders:
        if key in local:
            _point(folder / key, Path(local[key]))
        else:
            (folder / key).write_text(NO_LINK, encoding="utf-8")
    told = "\n".join(f"{folder / key}: a link to {name}" for key, name in local.items())
    folder.with_name(f"{folder.name}.txt").write_text(f"{told}\n" if told else "", encoding="utf-8")
    return told


def _made_by_link_encoders(entry: Path) -> bool:
    return entry.is_symlink() or (entry.is_file() and entry.read_bytes() == NO_LINK.encode())


def _point(link: Path, to: Path) -> None:
    """Make `link` a link to the folder, relative where the folder's path is."""
    link.unlink(missing_ok=True)
    link.symlink_to(to if to.is_absolute() else os.path.relpath(os.path.realpath(to), os.path.realpath(link.parent)))


@dataclass(frozen=True)
class Prepared:
    """The manifest, what the adapter repaired (a sentence -> how often), its notes, and the published counts."""

    utterances: list[Utterance]
    repaired: Counter[str]
    notes: list[str]
    published: Counts
    differences: list[Difference]  # to the published counts
    warnings: list[str] = field(default_factory=list)  # what is worth a look before anything is encoded


def prepare(params: DatasetParams) -> Prepared:
    """Read the corpus, order its turns, settle splits and ids, and decode every recording once.

    Raises:
        SettingsError: the corpus has no such target.
        DataError: see the adapters, `assign_splits`, `check_utterances` and `label_names`; also when a split is empty
            or when no recording at all can be read.
    """
    corpus = read_corpus(params)
    settled = settle(corpus.turns, params)
    drafts = [draft for draft, _ in settled]
    utterances = _probe_all(drafts, params)  # takes its time: all that can be refused without it has been
    _check_recordings(utterances, params)
    notes = [
        *corpus.notes,
        *note_validation(corpus.turns, params),
        *note_spellings(settled, params),
        *note_unwatched(utterances, params),
        *name_notes(utterances),
        *order_notes(utterances, corpus.turns, "turn" in corpus.columns),
        *repetition_notes(utterances),
    ]
    warnings = [
        *unused_key_warnings(params),
        *corpus.warnings,
        *label_warnings(utterances, params),
        *missing_name_warnings(utterances),
        *split_warnings(utterances, corpus.turns, params),
        *share_warnings(utterances, params),
        *modality_warnings(utterances),
        *sound_warnings(utterances),
        *copy_warnings(utterances),
        *target_warnings(corpus.turns, utterances),
    ]
    differences = compare(utterances, corpus.published)
    return Prepared(utterances, corpus.repaired, notes, corpus.published, differences, warnings)


def settle(turns: Sequence[Turn], params: DatasetParams) -> list[tuple[Utterance, Turn]]:
    """The utterances in manifest order, before recordings are probed, each with the turn that it was.

    Raises:
        DataError: see `assign_splits`, `check_utterances` and `label_names`; also when a split is empty.
    """
    _check_labels(turns, params)
    splits = assign_splits(turns, params)
    pairs = [
        (draft_utterance(turn, index, splits[turn.conversation], params), turn)
        for conversation in by_conversation(turns)
        for index, turn in enumerate(conversation)
    ]
    pairs = leave_to_others(pairs, params)
    pairs.sort(key=lambda pair: manifest_order(pair[0]))
    drafts = [draft for draft, _ in pairs]
    check_utterances(drafts, params.source)
    _check_splits(drafts, params)
    label_names(drafts, params.source)
    return pairs


def leave_to_others(pairs: Sequence[tuple[Utterance, Turn]], params: DatasetParams) -> list[tuple[Utterance, Turn]]:
    """A file that is the recording of some turn by its very name is that of no turn which spells it in another way.

    Not where the other turn has times: several turns then share a recording.
    """
    exact = {draft.audio for draft, turn in pairs if draft.audio == _as_written(turn, params)}
    return [
        (draft.model_copy(update={"audio": written}), turn)
        if draft.audio != (written := _as_written(turn, params))
        and draft.audio in exact
        and draft.start is None
        and draft.end is None
        else (draft, turn)
        for draft, turn in pairs
    ]


def _as_written(turn: Turn, params: DatasetParams) -> str | None:
    return None if turn.audio is None else _inside(turn.audio, turn.where or params.source, params.root).as_posix()


def note_spellings(settled: Sequence[tuple[Utterance, Turn]], params: DatasetParams) -> list[str]:
    """That recordings were found under a name which is spelled in another way."""
    others = [(draft, written) for draft, turn in settled if draft.audio != (written := _as_written(turn, params))]
    return [
        f"recordings that the disk spells in another way: {len(others)}, such as '{written}', taken to be "
        f"'{draft.audio}'"
        for draft, written in others[:1]
    ]


def summary(prepared: Prepared) -> str:
    """The table that `pipeline-prepare` prints: counts per split and label, hours, statuses, what was repaired.

    Under a row of which there are published counts lie these, in the same columns.
    """
    utterances = prepared.utterances
    chosen = {name: select(utterances, name) for name in COLUMNS}
    rows = list(_count_rows(utterances, prepared.published))
    named = {c: statuses(chosen[c]) | Counter({OK: sum(u.status == OK for u in chosen[c])}) for c in COLUMNS}
    for status, _ in named[ALL].most_common():
        rows.append((f"status {status}", [f"{named[c][status]}" for c in COLUMNS]))
    width = max(len(name) for name, _ in rows)
    lines = [" " * width + "".join(f"{name:>12}" for name in COLUMNS)]
    lines += [(f"{name:<{width}}" + "".join(f"{cell:>12}" for cell in cells)).rstrip() for name, cells in rows]
    lines += [f"status {u.status}: '{u.id}', {u.audio}" for u in unusable(utterances)[:NAMED]]
    lines += [f"repaired: {count} {what}" for what, count in prepared.repaired.most_common()]
    lines += [f"note: {note}" for note in prepared.notes]
    lines += _published_lines(prepared)
    lines += [f"warning: {warning}" for warning in prepared.warnings]
    return "\n".join(map(escape_unseen, lines))


def _count_rows(utterances: Sequence[Utterance], published: Counts) -> Iterator[tuple[str, list[str]]]:
    """Every count with its cells, the published ones under it; hours under speakers."""
    found = count(utterances)
    for what in dict.fromkeys((*found, *published)):  # of a label that is published, there may be none here
        yield what, [str(found.get(what, {}).get(name, 0)) for name in COLUMNS]
        if what in published:
            yield "  published", [str(published[what].get(name, "")) for name in COLUMNS]
        if what == "speakers":
            seconds = [sum(map(_seconds, select(utterances, name))) for name in COLUMNS]
            yield "hours", [f"{total / 3600:.3f}" for total in seconds]


def check_published(prepared: Prepared) -> None:
    """Refuse a corpus whose counts are not the published ones.

    Raises:
        DataError: naming the first difference.
    """
    if prepared.differences:
        raise DataError(
            f"{len(prepared.differences)} counts differ from the published ones, such as "
            f"{prepared.differences[0]}; complete the corpus, or leave --strict out"
        )


def _published_lines(prepared: Prepared) -> list[str]:
    """How many of the published counts are found, if there are any, then every difference, or the largest of many."""
    if not prepared.published:
        return []
    counts = sum(len(columns) for columns in prepared.published.values())
    same = counts - len(prepared.differences)
    told = [f"differs: {difference}" for difference in prepared.differences]
    if len(told) > MANY:
        largest = max(prepared.differences, key=lambda one: abs(one.found - one.published))
        told = [f"differs: {len(told)} counts, as the table shows, most of all {largest}"]
    return [f"published: {same} of {counts} counts are found", *told]


def note_validation(turns: Sequence[Turn], params: DatasetParams) -> list[str]:
    """That a validation split was made here, if it was."""
    if params.split != "given":
        given: dict[str, set[str]] = defaultdict(set)
        for turn in turns:
            given[turn.conversation] |= {turn.split} - {None}  # type: ignore[arg-type]
        notes = [f"the corpus' own splits are set aside: dataset.split is {params.split}"] * any(given.values())
        several = [conversation for conversation, splits in given.items() if len(splits) > 1]
        if several:
            notes.append(
                f"conversations with turns of several splits: {len(several)}, such as '{several[0]}'; if their "
                "numbers begin anew in each split, begin them with the split's name: they are one conversation now"
            )
        return notes
    made = not any(turn.split == "validation" for turn in turns)
    return [
        f"no validation split is given: conversations of train were held out (split_seed {params.split_seed})"
    ] * made


def unusable(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Those whose recording is named and gives no sound."""
    return [utterance for utterance in utterances if utterance.audio is not None and not utterance.samples]


def by_conversation(turns: Sequence[Turn]) -> list[list[Turn]]:
    """The turns of each conversation in their order; conversations as they are first met."""
    conversations: dict[str, list[Turn]] = defaultdict(list)
    for turn in turns:
        conversations[turn.conversation].append(turn)
    return [sorted(group, key=lambda turn: turn.order) for group in conversations.values()]


def draft_utterance(turn: Turn, index: int, split: str, params: DatasetParams) -> Utterance:
    """The utterance before its recording is probed.

    Raises:
        DataError: a name holds control characters, times do not fit, or the recording lies outside `params.root`.
    """
    where = turn.where or params.source
    identifier = turn.id or f"{turn.conversation}/{index}"
    label = None if turn.label is None else params.labels.get(turn.label, turn.label)
    names = {"id": identifier, "conversation": turn.conversation, "speaker": turn.speaker, "label": label}
    for name, value in names.items():
        if holds_controls(value):
            raise DataError(f"{where}: {name} {value!r} holds control characters; take them out")
    for name, seconds in (("start", turn.start), ("end", turn.end)):
        if seconds is not None and seconds < 0:
            raise DataError(
                f"{where}: '{identifier}': {name} {seconds} s is negative; count seconds from the file's beginning"
            )
    if turn.start is not None and turn.end is not None and turn.end < turn.start:
        raise DataError(
            f"{where}: '{identifier}': ends at {turn.end} s, before its start at {turn.start} s; fix one of them"
        )
    return Utterance(
        id=identifier,
        conversation=turn.conversation,
        turn=index,
        speaker=turn.speaker,
        split=split,  # type: ignore[arg-type]
        label=label,
        score=turn.score,
        text=visible(turn.text),
        recognised=None if turn.recognised is None else visible(turn.recognised),
        audio=None if turn.audio is None else relative_path(turn.audio, f"{where}: '{identifier}'", params.root),
        start=turn.start,
        end=turn.end,
        extra=dict(turn.extra),
        status="+".join(turn.issues) or OK,
    )


def visible(text: str) -> str:
    """`text` without surrounding white space; "" if it holds white space and invisible characters only."""
    seen = any(character.isprintable() and not character.isspace() for character in text)
    return text.strip() if seen else ""


def relative_path(audio: str, where: str, root: str) -> str:
    """`audio` relative to the folder `root`, with forward slashes; `where` leads the message.

    Only the name is judged: a folder of recordings may be a link to another disk. A name that the disk
    spells in another way is returned as it is there.
    """
    return as_on_disk(Path(root), _inside(audio, where, root))


def _inside(audio: str, where: str, root: str) -> PurePosixPath:
    """The same as it is written."""
    if "\0" in audio:
        raise DataError(f"{where}: recording {audio!r} has a zero byte in its name, which no file has; fix the name")
    path = PurePosixPath(audio.replace("\\", "/"))
    if path.is_absolute():
        roots = (Path(root).absolute(), Path(root).resolve())
        inside = [path.relative_to(folder) for folder in roots if path.is_relative_to(folder)]
        path = inside[0] if inside else PurePosixPath("..")
    if ".." in path.parts:
        raise DataError(
            f"{where}: recording {audio!r} lies outside dataset.root ({root}); "
            "set dataset.root to a folder that holds them all (of fusion-predict: --root)"
        )
    return path


def _probe_all(drafts: Sequence[Utterance], params: DatasetParams) -> list[Utterance]:
    """The drafts with what decoding their recordings tells; every recording is decoded once."""
    albums: dict[str | None, list[Utterance]] = defaultdict(list)
    for draft in drafts:
        albums[draft.audio].append(draft)
    silent = [after_probing(draft, None) for draft in albums.pop(None, [])]
    decoders = Decoders(params.decode_seconds)
    with (
        Threads(decoders.workers) as pool,
        decoders,  # closed before the threads are waited for
        tqdm(total=len(drafts), desc="decoding", unit="clip", disable=None) as bar,
    ):
        bar.update(len(silent))
        found = {utterance.id: utterance for utterance in silent}
        for probed in pool.map(lambda album: _probe(album, params, decoders), albums.values()):
            found.update((utterance.id, utterance) for utterance in probed)
            bar.update(len(probed))
    return [found[draft.id] for draft in drafts]


def _probe(album: Sequence[Utterance], params: DatasetParams, decoders: Decoders) -> list[Utterance]:
    """The turns of one recording, in the order in which they end."""
    turns: dict[Stretch, list[Utterance]] = defaultdict(list)
    for draft in album:
        turns[Stretch(draft.start, draft.end)].append(draft)
    path = Path(params.root) / str(album[0].audio)
    found = [
        after_probing(draft, recording)
        for stretch, recording in decoders.decode_stretches(path, params.channels, list(turns))
        for draft in turns[stretch]
    ]
    if not any(utterance.samples for utterance in found):
        return found
    content = hash_file(path)
    return [one.model_copy(update={"content": content}) if one.samples else one for one in found]


def after_probing(draft: Utterance, recording: Recording | None) -> Utterance:
    """The utterance with what decoding its recording tells."""
    issues = ["no-audio"] if recording is None else list(recording.issues)
    if not draft.text:
        issues.append("no-text")
    if draft.status != OK:  # what the adapter said
        issues.append(draft.status)
    return draft.model_copy(update={"status": "+".join(issues) or OK, **_measures(recording)})


def _measures(recording: Recording | None) -> dict[str, int]:
    if recording is None or not len(recording.samples):
        return {}
    return {"samples": len(recording.samples), "sample_rate": recording.sample_rate, "channels": recording.channels}


def _check_labels(turns: Sequence[Turn], params: DatasetParams) -> None:
    """Refuse a key of `dataset.labels` that is no label here."""
    known = {turn.label for turn in turns if turn.label is not None}
    for name in params.labels:
        if name not in known:
            hint = suggest(name, known)
            if name in ("True", "False"):
                hint = "; YAML takes yes, no, on and off without quotes for true and false: write 'yes': in quotes"
            found = ", ".join(sorted(known)[:NAMED]) + (", ..." if len(known) > NAMED else "")
            raise DataError(
                f"{params.source}: no label is '{name}' (dataset.labels); there are {found or 'none'}{hint}"
            )


def _check_splits(utterances: Sequence[Utterance], params: DatasetParams) -> None:
    counts = Counter(utterance.split for utterance in utterances)
    for split in SPLITS:
        if not counts[split]:
            found = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DataError(
                f"{params.source}: split '{split}' has no utterance (found {found}); "
                "fill the split column, or set dataset.split: conversation (or speaker) to have splits made"
            )


def _check_recordings(utterances: Sequence[Utterance], params: DatasetParams) -> None:
    named = [utterance for utterance in utterances if utterance.audio is not None]
    if named and not any(utterance.samples for utterance in named):
        first = named[0]
        times = first.status.startswith("empty-audio") and first.start is not None
        raise DataError(
            f"none of the {len(named)} recordings under {params.root} can be used; the first, {first.audio}: "
            f"{first.status}; "
            + (
                f"fix start and end, which are seconds of a recording (here from {first.start:g})"
                if times
                else "fix dataset.root or dataset.columns.audio (leave the column out for text only)"
                if params.source != params.root
                else "name and lay them out as the release does (docs/data-sets.md), or take them away for text only"
            )
        )


def _seconds(utterance: Utterance) -> float:
    return utterance.samples / utterance.sample_rate if utterance.sample_rate else 0.0
