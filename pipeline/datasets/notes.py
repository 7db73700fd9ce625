"""What is known of the corpora besides their files: licences, and scores that were published on their test splits."""

from pipeline.corpus_note import CorpusNote, Reference
from pipeline.datasets.targets import TARGETS, target_of
from pipeline.params import DatasetParams

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
