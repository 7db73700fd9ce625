"""What a corpus holds: counted, beside what its authors published, and what a user should look at before it is encoded
for hours. Pure.

Counts are of `utterances`, `conversations`, `speakers`, `recordings` (that can be used), `labelled` utterances and
`label <name>`, where there are scores also of `scored` utterances, in each split and in `all`. Warnings are of labels
that are probably one, or none, of a column that was probably meant, and of a modality that is mostly absent.
"""

import difflib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath

from pipeline.datasets import Counts, Turn
from pipeline.manifest import DASHES, SPLITS, Utterance, learned_key, looks_missing, reasons, same_spelling
from pipeline.params import DatasetParams
from pipeline.store import Contents, as_numbers, split_copies

ALL = "all"
COLUMNS = [*SPLITS, ALL]
ANSWERS = ("label", "labels", "emotion", "emotions", "sentiment", "class", "category", "target", "affect", "mood")
ABSENT = 0.1  # share of turns without a modality, above which something is probably wrong
OF_TURNS = ("untimed", "reversed-times", "repeated")  # statuses that say nothing of a modality, nor OF_LABELS
OF_LABELS = ("other-label", "undecided", "unevaluated", "no-score", "zero", "out-of-range", "unlisted", "other-split")
QUOTES = "'\"`´“”„‘’«»"
NEAR = 0.8  # share of letters in which two spellings agree, from which on one is probably a mistake
NAMED = 8  # groups of labels that are written out


@dataclass(frozen=True)
class Difference:
    """A count that is not the published one, and the statuses that account for it."""

    what: str
    split: str
    found: int
    published: int
    because: Counter[str]

    def __str__(self) -> str:
        reasons = ", ".join(f"{status} {count}" for status, count in self.because.most_common())
        return (
            f"{self.what}, {self.split}: {self.found}, published {self.published} ({reasons or 'no status says why'})"
        )


def count(utterances: Sequence[Utterance]) -> dict[str, dict[str, int]]:
    """How many of what there are in each of `COLUMNS`."""
    found: dict[str, dict[str, int]] = {}
    labels = sorted({utterance.label for utterance in utterances if utterance.label is not None})
    has_scores = any(utterance.score is not None for utterance in utterances)
    for column in COLUMNS:
        chosen = select(utterances, column)
        own = Counter(utterance.label for utterance in chosen)
        counts = {
            "utterances": len(chosen),
            "conversations": len({utterance.conversation for utterance in chosen}),
            "speakers": len({utterance.speaker for utterance in chosen} - {None}),
            "recordings": sum(utterance.samples > 0 for utterance in chosen),
            **({"scored": sum(utterance.score is not None for utterance in chosen)} if has_scores else {}),
            "labelled": len(chosen) - own[None],
            **{f"label {label}": own[label] for label in labels},
        }
        for what, number in counts.items():
            found.setdefault(what, {})[column] = number
    return found


def compare(utterances: Sequence[Utterance], published: Counts) -> list[Difference]:
    """Every published count that is not what was found."""
    found = count(utterances)
    differences = []
    for what, columns in published.items():
        for column, expected in columns.items():
            here = found.get(what, {}).get(column, 0)
            if here != expected:
                because = statuses(_concerned(select(utterances, column), what))
                because = of_audio(because) if what == "recordings" else because
                differences.append(Difference(what, column, here, expected, because))
    return differences


def statuses(utterances: Iterable[Utterance]) -> Counter[str]:
    """How often each status occurs, `ok` left out, and without the seconds that it names."""
    return Counter(reason for utterance in utterances for reason in reasons(utterance.status))


def of_audio(found: Counter[str]) -> Counter[str]:
    """Those statuses that can say why there is no sound."""
    others = ("no-text", *OF_LABELS, *OF_TURNS)
    return Counter({status: count for status, count in found.items() if status not in others})


def select(utterances: Sequence[Utterance], column: str) -> list[Utterance]:
    """Those of a split, or all."""
    return [utterance for utterance in utterances if column in (ALL, utterance.split)]


def _concerned(utterances: list[Utterance], what: str) -> list[Utterance]:
    """Whose statuses can tell why there are fewer of `what`."""
    if what == "recordings":
        return [utterance for utterance in utterances if not utterance.samples]
    if what.startswith("label"):
        return [utterance for utterance in utterances if utterance.label is None]
    return []  # a turn that is not there has no status


def _misspelt(counts: Counter[str], params: DatasetParams) -> list[str]:
    """Labels of fewer turns than there are splits that are spelled nearly as a common one, and the key that merges."""
    common = [label for label, count in counts.items() if count >= len(SPLITS)]
    near = {
        label: found[0]
        for label in sorted(counts.keys() - set(common))
        if (found := difflib.get_close_matches(label, common, 1, NEAR))
    }
    if not near:
        return []
    shown = ", ".join(f"'{label}' ({counts[label]}) as '{other}' ({counts[other]})" for label, other in near.items())
    key = json.dumps(params.labels | near, ensure_ascii=False)
    return [f"labels spelled nearly as another: {shown}; if it is the same: dataset.labels: {_escape(key)}"]


def label_warnings(utterances: Sequence[Utterance], params: DatasetParams) -> list[str]:
    """Labels that differ in what nobody sees, labels that look like missing values, and the key that settles both."""
    counts = Counter(utterance.label for utterance in utterances if utterance.label is not None)
    settled: dict[str, str | None] = {}
    found = []
    if alike := _alike(counts, _plain_label):
        found.append(
            "labels that differ only in case, blanks, hyphens, quotes, `.0`, Unicode form or invisible characters: "
            + _listed(alike)
        )
        for group in alike:
            best = max(group, key=lambda label: (_is_plain(label), group[label], -len(label)))
            settled |= {label: best for label in group if label != best}
    if missing := Counter({label: count for label, count in counts.items() if looks_missing(label)}):
        found.append(f"labels that look like missing values: {_listed([missing])}")
        settled |= dict.fromkeys(missing)
    misspelt = _misspelt(Counter({label: count for label, count in counts.items() if label not in settled}), params)
    if not found:
        return misspelt
    key = json.dumps(params.labels | settled, ensure_ascii=False)
    deeds = [deed for deed, there in (("merges", alike), ("drops", missing)) if there]
    return [*found, f"in params.yaml this {' and '.join(deeds)} them: dataset.labels: {_escape(key)}", *misspelt]


def split_warnings(utterances: Sequence[Utterance], turns: Sequence[Turn], params: DatasetParams) -> list[str]:
    """Labels of train that another split lacks, which no score on it speaks of; `turns` know which splits are given."""
    counts = Counter((utterance.split, utterance.label) for utterance in utterances if utterance.label is not None)
    trained = sorted(label for split, label in counts if split == "train")
    absent = {
        split: [f"'{label}' (train: {counts['train', label]})" for label in trained if not counts[split, label]]
        for split in ("validation", "test")
    }
    return [
        f"{split} has no utterance labelled {', '.join(labels)}; "
        + _fix_of_splits(params, params.split == "given" and any(turn.split == split for turn in turns))
        for split, labels in absent.items()
        if labels
    ]


def _fix_of_splits(params: DatasetParams, given: bool) -> str:
    """What changes a split that was `given`, or else made here."""
    table = params.source != params.root
    if not given:
        shares = "take another dataset.split_seed, larger shares, or "
        return shares + ("give the splits in the table" if table else "merge or drop labels (dataset.labels)")
    return (
        "move conversations to it in the table" if table else "complete the release, if turns of it are missing here"
    ) + ", merge or drop labels (dataset.labels), or have splits made (dataset.split: conversation)"


def share_warnings(utterances: Sequence[Utterance], params: DatasetParams) -> list[str]:
    """That a split which was made here has less than half, or more than twice, of what was asked for."""
    if params.split == "given":
        return []
    counts = Counter(utterance.split for utterance in utterances)
    asked = {"validation": params.validation_share, "test": params.test_share}
    found = {split: counts[split] / len(utterances) for split in asked}  # type: ignore[index]
    labelled = any(utterance.label is not None for utterance in utterances)
    why = "whole groups and the shares of labels come first; merge or drop labels of a few turns (dataset.labels), "
    return [
        f"{split} has {found[split]:.0%} of the turns, and dataset.{split}_share is {share:g}: "
        + (why if labelled else "whole groups come first; ")
        + "take another dataset.split_seed, or give the splits in the table"
        for split, share in asked.items()
        if not share / 2 <= found[split] <= 2 * share
    ]


def missing_name_warnings(utterances: Sequence[Utterance]) -> list[str]:
    """Texts, speakers and conversations of several turns that look like missing values, and are taken as they are."""
    warnings = []
    for field in ("text", "speaker", "conversation"):
        counts = Counter(value for one in utterances if (value := getattr(one, field)) and looks_missing(value))
        repeated = Counter({value: count for value, count in counts.items() if count > 1 and set(value) - DASHES})
        if repeated:
            warnings.append(
                f"{field} that looks like a missing value, and is taken as it is written: {_listed([repeated])}; if it "
                + ("is missing, name it" if field == "conversation" else "is missing, leave the cell empty")
            )
    return warnings


def repetition_notes(utterances: Sequence[Utterance]) -> list[str]:
    """Rows with a recording that repeat another one in all that they say."""
    counts = Counter(
        (one.conversation, one.speaker, one.text, one.audio, one.start, one.end, one.label, one.score)
        for one in utterances
        if one.audio is not None and (one.text or one.start is not None)
    )
    again = sum(count - 1 for count in counts.values())
    return [
        f"rows that repeat another one (the same conversation, speaker, text, recording and label): {again}; if they "
        "are there by mistake, take them out"
    ] * bool(again)


def sound_warnings(utterances: Sequence[Utterance]) -> list[str]:
    """That many turns are silent, several are given one and the same sound, or one that goes on into those behind."""
    silent = [one for one in utterances if "silent" in reasons(one.status)]
    stretches: dict[tuple[str, float | None, float | None], list[Utterance]] = defaultdict(list)
    open_ended: dict[str, list[Utterance]] = defaultdict(list)
    for one in utterances:
        if one.audio is not None and one.samples:
            stretches[one.audio, one.start, one.end].append(one)
            if one.start is not None and one.end is None:
                open_ended[one.audio].append(one)
    shared = [group for group in stretches.values() if len({(one.text, one.speaker, one.label) for one in group}) > 1]
    on = [group for group in open_ended.values() if len({one.start for one in group}) > 1]
    warnings = []
    if len(silent) > ABSENT * len(utterances):
        warnings.append(
            f"{len(silent)} of {len(utterances)} turns are silent, such as '{silent[0].id}': every sample is zero; "
            "where each speaker has a channel, see dataset.channels"
        )
    if shared:
        warnings.append(
            f"{sum(map(len, shared))} turns have the very same sound as another one, such as '{shared[0][0].id}' and "
            f"'{shared[0][1].id}' ({shared[0][0].audio}); "
            + (
                "see whether their times are right"
                if any(one.start is not None for one in utterances)
                else "in a table, give each its seconds: dataset.columns: {start: your_column, end: your_column}"
            )
        )
    if on:
        warnings.append(
            f"{sum(map(len, on))} turns have a start and no end, so they last to the end of their recording and hold "
            "the turns behind them; "
            + (
                "fill in the ends that are missing"
                if any(one.end is not None for one in utterances)
                else "in a table, name the column of ends: dataset.columns: {end: your_column}"
            )
        )
    return warnings


def copy_warnings(utterances: Sequence[Utterance]) -> list[str]:
    """Recordings and whole conversations of validation and test that train has, too; see `pipeline.store.splits`."""
    contents = Contents(
        ids=[one.id for one in utterances],
        conversations=[one.conversation for one in utterances],
        speakers=[one.speaker for one in utterances],
        told=as_numbers((one.label, one.score) for one in utterances),
        audio=as_numbers(None if "silent" in one.status else learned_key(one, "audio") for one in utterances),
        text=as_numbers(one.text for one in utterances),
    )
    return split_copies(contents, [one.split for one in utterances])


def order_notes(utterances: Sequence[Utterance], turns: Sequence[Turn], numbered: bool) -> list[str]:
    """Later turns that begin earlier in their recording; where a column has `numbered` turns, those of one number."""
    one_clock = _conversations_of_one_clock(utterances)
    backwards = [
        second
        for first, second in pairwise(utterances)
        if first.conversation == second.conversation
        if first.audio == second.audio or first.conversation in one_clock
        if first.start is not None and second.start is not None and second.start < first.start
    ]
    numbers = Counter((turn.conversation, turn.order) for turn in turns if numbered)
    twice = {conversation: None for (conversation, _), count in numbers.items() if count > 1}
    notes = []
    if backwards:
        fix = "fix their numbers" if numbered else "sort the rows by start, or number the turns in a column"
        notes.append(
            f"turns that begin before the turn in front of them: {len(backwards)}, such as '{backwards[0].id}' at "
            f"{backwards[0].start:g} s; {fix} (dataset.columns.turn): their order is their context"
        )
    if twice:
        notes.append(
            f"conversations with two turns of one number: {len(twice)}, such as '{next(iter(twice))}'; these keep the "
            "order of their rows"
        )
    return notes


def _conversations_of_one_clock(utterances: Sequence[Utterance]) -> set[str]:
    """Those with a recording for each speaker, each with several turns and all at the same times."""
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    speakers: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for one in utterances:
        if one.audio is not None and one.start is not None:
            times[one.conversation][one.audio].append(one.start)
            speakers[one.conversation].add((one.audio, one.speaker or ""))
    return {
        conversation
        for conversation, starts in times.items()
        if len({speaker for _, speaker in speakers[conversation]}) == len(speakers[conversation]) == len(starts) > 1
        if min(map(len, starts.values())) > 1
        if max(map(min, starts.values())) < min(map(max, starts.values()))
    }


def note_unwatched(utterances: Sequence[Utterance], params: DatasetParams) -> list[str]:
    """What DVC does not look at: what lies behind a folder that is a link, and a table outside the root."""
    root = Path(params.root)
    folders = {parent for one in utterances if one.audio for parent in PurePosixPath(one.audio).parents}
    outside = {folder for folder in folders if folder.name and not _lies_inside(root / folder, root)}
    found = [
        str(folder) for folder in sorted(outside) if outside.isdisjoint(folder.parents)
    ]  # the link, not what is in it
    if params.source != params.root and not _lies_inside(Path(params.source), root):
        found.append(params.table)
    return [
        f"{what} lies outside dataset.root, so DVC does not notice when it changes; after a change run dvc repro "
        "--force prepare, then dvc repro"
        for what in found
    ]


def _lies_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def name_notes(utterances: Sequence[Utterance]) -> list[str]:
    """Speakers and conversations that are probably one; no key merges them."""
    speakers = Counter(utterance.speaker for utterance in utterances if utterance.speaker)
    conversations = Counter(utterance.conversation for utterance in utterances)
    return [
        f"{what} that differ only in {how}blanks, `.0`, Unicode form or invisible characters: {_listed(alike)}; if "
        "they are the same, fix the table"
        for what, how, alike in (
            ("speakers", "case, ", _alike(speakers, _plain_name)),
            ("conversations", "", _alike(conversations, partial(_plain_name, case=True))),
        )
        if alike
    ]


def target_warnings(turns: Sequence[Turn], utterances: Sequence[Utterance]) -> list[str]:
    """That there is nothing to learn, and which column may have been meant."""
    if any(utterance.label is not None for utterance in utterances):
        return []
    if any(utterance.score is not None for utterance in utterances):
        return ["no turn has a label, so only the scores can be learned (train.target: score)"]
    unused = list(dict.fromkeys(name for turn in turns for name in turn.extra))
    close = [
        name
        for name in unused
        if any(difflib.get_close_matches(word, ANSWERS, n=1, cutoff=0.8) for word in re.split(r"[\W_]+", name.lower()))
    ]
    like = close[0] if close else "your_column"
    return [
        "no turn has a label or a score, so no model can be trained on it: name the column of labels with "
        f"dataset.columns: {{label: {like}}}" + (f" (not used are {', '.join(unused)})" if unused else "")
    ]


def modality_warnings(utterances: Sequence[Utterance]) -> list[str]:
    """That more than a tenth of the turns lack audio, or text, and why; not of a corpus that has none of it."""
    warnings = []
    for modality, absent, given in (
        ("audio", [one for one in utterances if not one.samples], any(one.audio for one in utterances)),
        ("text", [one for one in utterances if not one.text], any(one.text for one in utterances)),
    ):
        if given and len(absent) > ABSENT * len(utterances):
            own = Counter({"no-text": len(absent)}) if modality == "text" else of_audio(statuses(absent))
            why = ", ".join(f"{status} {count}" for status, count in own.most_common())
            warnings.append(
                f"{len(absent)} of {len(utterances)} turns have no {modality} ({why}); they are learned from the other "
                "modality alone"
            )
    return warnings


def _alike(counts: Mapping[str, int], spelling: Callable[[str], str]) -> list[Counter[str]]:
    """Groups of names that are spelled the same, with their counts."""
    groups: dict[str, Counter[str]] = {}
    for name, count in counts.items():
        groups.setdefault(spelling(name), Counter())[name] += count
    return [group for group in groups.values() if len(group) > 1]


def _plain_label(label: str) -> str:
    """What labels share that mean the same.

    >>> [_plain_label(label) for label in ("very sad", "very-sad", "'Very_sad'", "1.0", "-1")]
    ['verysad', 'verysad', 'verysad', '1', '-1']
    """
    plain = _plain_number(same_spelling(label).strip(QUOTES))
    return re.sub(r"(?<=[^\W\d_])[-_\u2010-\u2015]+(?=[^\W\d_])", "", plain)


def _plain_name(name: str, case: bool = False) -> str:
    return _plain_number(same_spelling(name, case))


def _plain_number(name: str) -> str:
    """Without the `.0` that programs give whole numbers."""
    return re.sub(r"(?<=\d)\.0+$", "", name) if re.fullmatch(r"-?\d+\.0+", name) else name


def _is_plain(label: str) -> bool:
    seen = unicodedata.is_normalized("NFC", label) and all(map(str.isprintable, label))
    return seen and "  " not in label and label == label.strip(QUOTES)


def _listed(groups: Iterable[Counter[str]]) -> str:
    told = [", ".join(f"'{name}' {count}" for name, count in group.most_common()) for group in groups]
    return "; ".join(told[:NAMED]) + ("; ..." if len(told) > NAMED else "")


def _escape(key: str) -> str:
    """JSON, which is YAML, that can be copied from a terminal: what nobody sees by its number."""
    plain = all(map(str.isprintable, key)) and unicodedata.is_normalized("NFC", key)
    return key if plain else json.dumps(json.loads(key))
