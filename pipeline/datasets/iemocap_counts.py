"""How much IEMOCAP holds, as published.

The release has 10,039 recorded and evaluated turns of 151 dialogues. Its majority labels are counted by session in the
papers that leave one session out (four classes: 1,085, 1,023, 1,151, 1,031 and 1,241 turns, 5,531 in all); counts of
frustrated turns were found for all sessions together and for the fifth.
"""

from collections.abc import Mapping

from pipeline.datasets.turns import Counts

DIALOGUES = {1: 28, 2: 30, 3: 32, 4: 30, 5: 31}
RECORDINGS = {1: 1_819, 2: 1_811, 3: 2_136, 4: 2_103, 5: 2_170}
CODES = {"ang": 1_103, "exc": 1_041, "fru": 1_849, "hap": 595, "neu": 1_708, "sad": 1_084}
SESSION_CODES = {
    1: {"ang": 229, "exc": 143, "hap": 135, "neu": 384, "sad": 194},
    2: {"ang": 137, "exc": 210, "hap": 117, "neu": 362, "sad": 197},
    3: {"ang": 240, "exc": 151, "hap": 135, "neu": 320, "sad": 305},
    4: {"ang": 327, "exc": 238, "hap": 65, "neu": 258, "sad": 143},
    5: {"ang": 170, "exc": 299, "fru": 381, "hap": 143, "neu": 384, "sad": 245},
}


def published(codes: Mapping[str, str], test: int | None) -> Counts:
    """The counts of a target (`codes`: the release's code -> label), in all and of the session `test`."""
    counts = {
        "conversations": {"all": sum(DIALOGUES.values())},
        "speakers": {"all": 2 * len(DIALOGUES)},
        "recordings": {"all": sum(RECORDINGS.values())},
        **_labels(codes, CODES, "all"),
    }
    if test is None:
        return counts
    of_test = {
        "conversations": {"test": DIALOGUES[test]},
        "speakers": {"test": 2},
        "recordings": {"test": RECORDINGS[test]},
        **_labels(codes, SESSION_CODES[test], "test"),
    }
    return {what: {**of_test.get(what, {}), **columns} for what, columns in counts.items()}


def _labels(codes: Mapping[str, str], counted: Mapping[str, int], column: str) -> dict[str, dict[str, int]]:
    """Counts of each label, and of all where every one of them is known."""
    sums: dict[str, int] = {}
    for code, label in codes.items():
        if code in counted:
            sums[label] = sums.get(label, 0) + counted[code]
    labels = {f"label {label}": {column: number} for label, number in sums.items()}
    return ({"labelled": {column: sum(sums.values())}} if set(codes) <= set(counted) else {}) | labels
