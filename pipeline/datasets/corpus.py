"""What an adapter hands to `pipeline.preparation`, which annotation of a corpus is its label (`dataset.target`), and
what is known of the corpora besides their files: licences, and scores that were published on their test splits.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.errors import suggest
from pipeline.params import CORPORA, DatasetParams
from pipeline.settings import SettingsError
from pipeline.store import CorpusNote, Reference

Counts = Mapping[str, Mapping[str, int]]  # of what (`utterances`, `label joy`), in which split or `all`, how many


@dataclass(frozen=True)
class Turn:
    """One turn as the corpus tells it, before recordings are probed; turns come in the order of the conversation."""

    conversation: str
    order: float  # sorts the turns of a conversation; equal ones keep the order in which they came
    id: str | None = None  # made from conversation and turn if the corpus has none
    speaker: str | None = None
    split: str | None = None  # train, validation, test; or made by prepare
    label: str | None = None
    score: float | None = None
    text: str = ""
    recognised: str | None = None  # what a speech recogniser made of the recording
    audio: str | None = None  # path relative to the corpus root
    start: float | None = None  # seconds
    end: float | None = None
    extra: Mapping[str, str] = field(default_factory=dict)  # what else the corpus says; carried along, read by nothing
    issues: tuple[str, ...] = ()  # of the corpus, for `status` (`pipeline.manifest` lists them all)
    where: str | None = field(default=None, compare=False)  # the file and line that it is from, to lead messages


@dataclass(frozen=True)
class Corpus:
    """All turns, what was repaired on the way (a sentence -> how often), and what a user should know.

    `published` are counts that the corpus' authors state, which `pipeline.preparation.counts` compares with what is
    found.
    """

    turns: list[Turn]
    repaired: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    published: Counts = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)  # of a table: field -> the column that has it
    warnings: list[str] = field(default_factory=list)  # what is worth a look before anything is encoded


TARGETS: dict[str, tuple[str, ...]] = {  # the first one is meant where dataset.target is null
    "meld": ("emotion", "sentiment"),
    "iemocap": ("four", "six"),
    "mosi": ("nonnegative", "positive", "seven", "score"),
}


def check_target(params: DatasetParams) -> None:
    """Hold `dataset.target` to what the corpus has; what a plug-in takes is its adapter's business.

    Raises:
        SettingsError: naming what is accepted.
    """
    accepted = TARGETS.get(params.name, ())
    if params.name in CORPORA and params.target is not None and params.target not in accepted:
        kinds = " | ".join(accepted) or "null only: its label is the column of dataset.columns.label"
        hint = suggest(params.target, accepted)
        raise SettingsError(f"'dataset.target' is '{params.target}'; {params.name} accepts {kinds}{hint}")


KEYS_OF = {  # of `dataset`, which the adapters of these corpora alone read
    "table": ("demo", "table"),
    "columns": ("demo", "table"),
    "fold": ("iemocap",),
    "validation_session": ("iemocap",),
    "protocol": ("mosi",),
}


def unused_key_warnings(params: DatasetParams) -> list[str]:
    """Keys that are set and that the corpus does not read."""
    changed = {key for key in KEYS_OF if getattr(params, key) != DatasetParams.model_fields[key].default}
    return [
        f"dataset.{key} is set and changes nothing for {params.name}: it is a key of {' and '.join(readers)}"
        for key, readers in KEYS_OF.items()
        if key in changed and params.name in CORPORA and params.name not in readers
    ]


def target_of(params: DatasetParams) -> str:
    """The target of a corpus that has several, the default resolved."""
    return params.target or TARGETS[params.name][0]


NAMES = {
    "demo": "the synthetic demo corpus of erc-fusion (espeak-ng, template sentences)",
    "meld": "MELD",
    "iemocap": "IEMOCAP",
    "mosi": "CMU-MOSI",
}
LICENCES = {
    "demo": "MIT, as the project; synthetic speech, made by espeak-ng from template sentences",
    "meld": "annotations: GPL-3.0 (declare-lab/MELD); the clips are of a television series, whose owners keep their "
    "rights",
    "iemocap": "given by its owners on request, for those who signed its terms; ask them before passing anything on",
    "mosi": "see the terms that its release came with; the videos remain their makers'",
}
UNKNOWN = "not stated (features.licence of params.yaml states it); ask whoever owns the recordings and transcripts"

LISTED = "as leaderboards list it; encoders were fine-tuned"
CLAIMED = "its authors' figure; encoders were fine-tuned"
ACC_2 = "; which of the two conventions of binary labels is not known"


def _scores(source: str, extra: str = "", **values: float) -> tuple[Reference, ...]:
    return tuple(
        Reference(model.replace("_", "-"), "weighted_f1", value, source + extra) for model, value in values.items()
    )


REFERENCES: dict[tuple[str, str], tuple[Reference, ...]] = {  # by name and target; weighted F1
    ("meld", "emotion"): _scores(f"arXiv 2304.06910, {LISTED}", HCAM=0.658) + _scores(CLAIMED, MERITS_L=0.660),
    ("iemocap", "four"): _scores(f"arXiv 2304.06910, {LISTED}", HCAM=0.859) + _scores(CLAIMED, MERITS_L=0.865),
    ("iemocap", "six"): _scores(f"arXiv 2304.06910, {LISTED}", HCAM=0.705),
    **{
        ("mosi", target): _scores(f"arXiv 2304.06910, {LISTED}", ACC_2, HCAM=0.858)
        + _scores(CLAIMED, ACC_2, MERITS_L=0.868)
        for target in ("nonnegative", "positive")
    },
}


def describe_corpus(params: DatasetParams, licence: str | None = None, name: str | None = None) -> CorpusNote:
    """The note on the corpus that `params` names; `licence` and `name` are what its user states of it."""
    name = name or NAMES.get(params.name)
    if params.name not in TARGETS:
        return CorpusNote(name, licence or LICENCES.get(params.name, UNKNOWN))
    target = target_of(params)
    return CorpusNote(f"{name}, {target}", licence or LICENCES[params.name], REFERENCES.get((params.name, target), ()))
