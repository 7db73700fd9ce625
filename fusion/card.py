"""The README.md of a model folder: what the model is, what it learned from, how well it does, what it is for and not.

The text is `card.md.j2`. Names that come from a user's data pass through `escape` or `code`, so that no label or corpus
name can break a table or forge a heading. The YAML in front, which the Hugging Face hub reads, is huggingface_hub's.
"""

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fusion.facts import CONFIDENCE, RESAMPLES
from fusion.models import MODELS
from fusion.provenance import Provenance
from fusion.shared_scores import SharedScores
from fusion.tables import bounds, mean_std, rounded
from fusion.tasks import METRICS
from pipeline.store import Identity

ABSTRACTS = (
    "The paper's body was not at hand when this was written: its abstract names the parts, and how they are built is "
    "erc-fusion's reading. No score of the paper is claimed to be reproduced."
)
OWN = "A baseline of erc-fusion's own; there is no paper to cite."

UNNAMED = "Which paper it follows, if any, is not written down with it (`fusion/card.py` is the place)."


@dataclass(frozen=True)
class Method:
    """What a card says of a model's architecture."""

    title: str
    summary: str
    module: str  # of fusion.models
    class_name: str
    reading: str = OWN  # how the paper, if there is one, relates to the code
    paper: str | None = None


METHODS = {
    "hbaf": Method(
        "HBAF",
        "Heterogeneous bimodal attention fusion: frames and tokens meet by gated attention on two levels, with what "
        "the conversation says around them.",
        "hbaf",
        "HBAF",
        ABSTRACTS,
        "Heterogeneous bimodal attention fusion, arXiv 2503.06405",
    ),
    "hcam": Method(
        "HCAM",
        "Hierarchical cross-attention model: each modality alone, along the conversation, then both by co-attention.",
        "hcam",
        "HCAM",
        ABSTRACTS,
        "Hierarchical cross-attention model, arXiv 2304.06910",
    ),
    "audio": Method(
        "Audio baseline", "Recordings alone, with a recurrent encoder of the turns.", "baselines", "SingleModality"
    ),
    "text": Method(
        "Text baseline", "Transcripts alone, with a recurrent encoder of the turns.", "baselines", "SingleModality"
    ),
    "concat": Method(
        "Late fusion baseline", "Audio and text side by side, into one classifier.", "baselines", "Concat"
    ),
    "crossmodal": Method(
        "Cross-modal baseline",
        "Directional cross-modal transformers between audio and text.",
        "baselines",
        "CrossModal",
        "After the idea of this paper; widths and depths are erc-fusion's.",
        "MulT, Tsai et al., arXiv 1906.00295",
    ),
}
HUB_METRICS = {"weighted_f1": "f1", "macro_f1": "f1", "uar": "recall", "correlation": "pearsonr"}  # others: their own
SPECIAL = re.compile(r"([\\`*_\[\]<>|#~$!&])")


def _method(name: str) -> Method:
    """Of a model without an entry here, such as a user's own, what its class says of itself."""
    if name in METHODS:
        return METHODS[name]
    made: Any = MODELS[name]
    own = getattr(made, "func", made)  # of a partial
    summary = (inspect.getdoc(own) or f"{own.__name__}.").split("\n\n")[0]
    return Method(name, " ".join(summary.split()), own.__module__.split(".")[-1], own.__name__, UNNAMED)


def model_card(provenance: Provenance, scores: SharedScores | None = None, onnx: bool = False) -> str:
    """The text of the card; `scores` are those of the test split, `onnx`: there is a model.onnx beside it."""
    parts = {"audio": provenance.audio, "text": provenance.text}
    recipe = provenance.recipe
    return _template().render(
        front_matter=_front_matter(provenance, scores),
        method=_method(recipe.model.name),
        corpus=provenance.corpus,
        labels=provenance.labels,
        target=recipe.train.target,
        version=provenance.version,
        seed=provenance.seed,
        encoders={name: identity for name, identity in parts.items() if identity is not None},
        audio_frames=recipe.model.audio_frames,
        data=provenance.data,
        features=provenance.features,
        validation=provenance.validation,
        intervals=provenance.intervals,
        selected=", ".join(f"{head} {number}" for head, number in provenance.selected.items()),
        calibration=provenance.calibration,
        scores=scores,
        lead=recipe.train.metric,
        titles={name: metric.title for name, metric in METRICS.items()},
        confidence=f"{CONFIDENCE:.0%}",
        resamples=RESAMPLES,
        direction=recipe.model.direction,
        parameters=json.dumps(recipe.to_json(), indent=2),
        onnx=onnx,
    )


def escape(text: str) -> str:
    r"""`text` on one line, as Markdown that shows it.

    >>> print(escape("joy | *very*\n# happy"))
    joy \| \*very\* \# happy
    """
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """`text` on one line as a span of code, which ends where it ends.

    >>> code("a `b`")
    '`` a `b` ``'
    """
    line = " ".join(text.split())
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def describe_encoder(identity: Identity) -> str:
    """An encoder in a line, in Markdown: what a reader needs to find it; the identity has the rest."""
    fields = identity.fields
    layers = fields.get("layers") or []
    mix = "averaged" if fields.get("mix") == "mean" else "mixed by weights that the model learned"
    said = {
        "revision": code(str(fields["revision"])) if fields.get("revision") else None,
        "layer" if len(layers) == 1 else "layers": ", ".join(map(str, layers)) or None,
        "precision": fields.get("precision"),
        "stored as": fields.get("dtype"),
        "weights": code(str(fields["weights"])[:12]) if fields.get("weights") else None,
    }
    words = [f"{name} {value}" for name, value in said.items() if value]
    words = [f"{word} {mix}" if word.startswith("layers") else word for word in words]
    return ", ".join([code(str(fields.get("model", "unknown"))), *words])


def _front_matter(provenance: Provenance, scores: SharedScores | None) -> str:
    """What the hub reads. The test scores where there are some, else those of validation."""
    name = provenance.recipe.model.name
    found = {metric: one.value for metric, one in scores.metrics.items()} if scores else provenance.validation["fused"]
    note = provenance.corpus
    corpus = " ".join(note.name.split()) if note and note.name else "not stated"
    results = [
        EvalResult(
            task_type="audio-classification",
            task_name="emotion recognition in conversations",
            dataset_type="unknown",  # the hub refuses results without an id of a data set; no corpus here has one
            dataset_name=corpus,
            dataset_split="test" if scores else "validation",
            metric_type=HUB_METRICS.get(metric, metric),
            metric_name=METRICS[metric].title,
            metric_value=rounded(value),
        )
        for metric, value in found.items()
    ]
    data = ModelCardData(
        library_name="erc-fusion",
        pipeline_tag="audio-classification",
        license="other",  # of weights that a corpus has its say in
        license_name="see-licences-below",
        tags=["emotion-recognition", "emotion-recognition-in-conversation", "multimodal", name],
        model_name=f"{name}, seed {provenance.seed}",
        eval_results=results,
    )
    return data.to_yaml().strip()


def _mean_std(score: Mapping[str, float | None]) -> str:
    mean, std = score["mean"], score["std"]
    assert mean is not None
    return mean_std(mean, std)


def _block(text: str, language: str) -> str:
    """A block of code, whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"{fence}{language}\n{text}\n{fence}"


@cache  # it takes longer to compile than to fill in
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: Mapping[str, Any] = {
        "md": escape,
        "code": code,
        "block": _block,
        "interval": bounds,
        "mean_std": _mean_std,
        "encoder": describe_encoder,
        "title_of": lambda name: escape(METRICS[name].title),
    }
    environment.filters.update(filters)
    return environment.get_template("card.md.j2")
