"""The README.md of a model folder: what the model is, what it learned from, how well it does, what it is for and not.

The text is `card.md.j2`. Names that come from a user's data pass through `escape_markdown` or `code`, so that no label
or corpus name can break a table or forge a heading. The YAML in front, which the Hugging Face hub reads, is
huggingface_hub's.

Test scores are read from the results that `fusion-evaluate` wrote of the model and its other seeds.
"""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fusion.checkpoint.provenance import CONFIDENCE, RESAMPLES, Provenance
from fusion.errors import ResultError
from fusion.models import MODELS, find_model
from fusion.objective import METRICS, Calibration, Interval
from fusion.tables import bounds, escape_markdown, interval_of, is_whole, isolated, mean_std, rounded
from pipeline.settings import refuse_pipe
from pipeline.store import Identity


@dataclass(frozen=True)
class SharedScore:
    """One metric on the test split."""

    value: float  # of this model
    interval: Interval
    mean: float  # over all seeds
    std: float | None
    mean_interval: Interval
    floor: float  # of always giving the one answer that suits train best
    chance: float  # of answers drawn as those of train are distributed


@dataclass(frozen=True)
class SharedReference:
    """The linear reference, or the seeds as an ensemble, on the test split."""

    name: str
    scores: Mapping[str, float]  # by metric
    change: float  # the mean over seeds minus it, by the metric that selects
    interval: Interval  # of the change


@dataclass(frozen=True)
class SharedScores:
    """One model on the test split."""

    features: str  # hash of the feature file that was scored
    utterances: int  # that count
    seeds: str  # all that were scored
    confidence: float
    metrics: Mapping[str, SharedScore]
    per_class: Mapping[str, Mapping[str, Any]]  # as `fusion.evaluation.predictions.describe_classes`, over all seeds
    calibration: Calibration | None
    beside: Sequence[SharedReference]
    warnings: Sequence[str]  # what must not be overlooked


def read_scores(results: Path, provenance: Provenance) -> SharedScores:
    """What `results/details.json` says of the model with this provenance.

    Raises:
        ResultError: the file is missing or damaged, or of another model.
    """
    path = results / "details.json"
    try:
        refuse_pipe(path)
        content = json.loads(path.read_text(encoding="utf-8"))
        run = content["run"]
        _check_same(path, run, content["seeds"], provenance)
        seed = content["seeds"][str(provenance.seed)]
        calibration = content["calibration"].get(str(provenance.seed))
        metrics = {name: _score(own, content["test"][name]) for name, own in seed["test"].items()}
        scores = SharedScores(
            features=run["features"],
            utterances=content["test"]["utterances"],
            seeds=run["seeds"],
            confidence=run["intervals"]["confidence"],
            metrics=metrics,
            per_class=content["test"]["per_class"],
            calibration=None if calibration is None else Calibration(**calibration),
            beside=[
                _reference(one, provenance.recipe.train.metric) for one in (content["ensemble"], *content["linear"][:1])
            ],
            warnings=[str(line) for line in content["warnings"]],
        )
        if not is_whole(content):
            raise ValueError("edited since it was written")
        if provenance.labels and list(scores.per_class) != list(provenance.labels):
            raise ResultError(
                f"{path}: of the labels {', '.join(scores.per_class)}, but the model has "
                f"{', '.join(provenance.labels)}; leave --results out, or give the same labels to features and model"
            )
    except FileNotFoundError as error:
        raise ResultError(f"{path}: no such file; score the model with fusion-evaluate first") from error
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise ResultError(f"{path}: damaged, or of another version ({reason}); run fusion-evaluate again") from error
    return scores


def _score(own: Mapping[str, float], summary: Mapping[str, Any]) -> SharedScore:
    return SharedScore(
        value=own["value"],
        interval=interval_of(own),
        mean=summary["mean"],
        std=summary["std"],
        mean_interval=interval_of(summary),
        floor=summary["floor"],
        chance=summary["chance"],
    )


def _reference(content: Mapping[str, Any], metric: str) -> SharedReference:
    change = content["difference"][metric]
    return SharedReference(
        name=content["name"],
        scores={name: one["value"] for name, one in content["test"].items()},
        change=change["mean"],
        interval=interval_of(change),
    )


def _check_same(path: Path, run: Mapping[str, Any], seeds: Mapping[str, Any], provenance: Provenance) -> None:
    """Raise ResultError unless the results are of this very model: trained alike, and as good on validation."""
    seed = seeds.get(str(provenance.seed), {})
    validation = {name: rounded(value) for name, value in provenance.validation["fused"].items()}
    compared = {
        "model": (run["model"], provenance.recipe.model.name),
        "parameters": (run["params"], provenance.recipe.digest),
        "training features": (run["trained_on"], provenance.features),
        "seed": (provenance.seed if seed else run["seeds"], provenance.seed),
        "chosen epochs": (seed.get("epochs"), dict(provenance.selected)),
        "validation scores": (seed.get("validation"), validation),
    }
    for name, (found, expected) in compared.items():
        if found != expected:
            raise ResultError(
                f"{path}: of another model: its {name} {_short(found)}, the model's {_short(expected)}; "
                "run fusion-evaluate on this one, or name its results with --results"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


ABSTRACTS = (
    "The paper's body was not available when this was written: its abstract names the parts, and how they are built is "
    "erc-fusion's reading. No score of the paper is claimed to be reproduced."
)
REFERENCE = (
    "After this paper's equations on erc-fusion's inputs: what differs is written in the docstring of its file. No "
    "score of the paper is claimed to be reproduced."
)
OWN = "A baseline of erc-fusion's own; there is no paper to cite."

UNNAMED = "Which paper it follows, if any, is not written down with it (`fusion/checkpoint/card.py` is the place)."


@dataclass(frozen=True)
class Method:
    """What a card says of a model's architecture."""

    title: str
    summary: str
    reading: str = OWN  # how the paper, if there is one, relates to the code
    paper: str | None = None


METHODS = {
    "hbaf": Method(
        "HBAF",
        "Heterogeneous bimodal attention fusion: frames and tokens meet by gated attention on two levels, with what "
        "the conversation says around them.",
        ABSTRACTS,
        "Heterogeneous bimodal attention fusion, arXiv 2503.06405",
    ),
    "hcam": Method(
        "HCAM",
        "Hierarchical cross-attention model: each modality alone, along the conversation, then both by co-attention.",
        ABSTRACTS,
        "Hierarchical cross-attention model, arXiv 2304.06910",
    ),
    "audio": Method("Audio baseline", "Recordings alone, with a recurrent encoder of the turns."),
    "text": Method("Text baseline", "Transcripts alone, with a recurrent encoder of the turns."),
    "concat": Method("Late fusion baseline", "Audio and text side by side, into one classifier."),
    "crossmodal": Method(
        "Cross-modal baseline",
        "Directional cross-modal transformers between audio and text.",
        "After the idea of this paper; widths and depths are erc-fusion's.",
        "MulT, Tsai et al., arXiv 1906.00295",
    ),
    "tfn": Method(
        "TFN",
        "Tensor fusion network: every product of an audio and a text feature.",
        REFERENCE,
        "Zadeh et al., arXiv 1707.07250",
    ),
    "lmf": Method(
        "LMF",
        "Low-rank multimodal fusion: tensor fusion whose weights are a sum of few products.",
        REFERENCE,
        "Liu et al., arXiv 1806.00064",
    ),
    "misa": Method(
        "MISA",
        "Modality-invariant and -specific representations, in spaces that losses hold apart.",
        REFERENCE,
        "Hazarika et al., arXiv 2005.03545",
    ),
    "mult": Method(
        "MulT",
        "Multimodal transformer: the positions of each modality look at those of the other, then at each other.",
        REFERENCE,
        "Tsai et al., arXiv 1906.00295",
    ),
    "dialoguernn": Method(
        "DialogueRNN",
        "Recurrent states of the conversation, of each speaker and of the emotion, along the turns.",
        REFERENCE,
        "Majumder et al., arXiv 1811.00405",
    ),
    "dialoguegcn": Method(
        "DialogueGCN",
        "A graph of turns whose edges know whether one person speaks and which turn comes first.",
        REFERENCE,
        "Ghosal et al., arXiv 1908.11540",
    ),
    "experts": Method(
        "Gated experts",
        "A learned gate over an expert for audio, one for text and one for both.",
        "After the abstract of this paper; the form of gate, experts and losses is erc-fusion's.",
        "MiSTER-E, Dutta et al., arXiv 2602.23300",
    ),
}
HUB_METRICS = {"weighted_f1": "f1", "macro_f1": "f1", "uar": "recall", "correlation": "pearsonr"}  # others: their own


def _method(name: str, model: type) -> Method:
    """Of a model without an entry here, such as a user's own, what its class says of itself."""
    if name in METHODS:
        return METHODS[name]
    summary = (inspect.getdoc(model) or f"{model.__name__}.").split("\n\n")[0]
    return Method(name, " ".join(summary.split()), UNNAMED)


def model_card(provenance: Provenance, scores: SharedScores | None = None, onnx: bool = False) -> str:
    """The text of the card; `scores` are those of the test split, `onnx`: there is a model.onnx beside it."""
    parts = {"audio": provenance.audio, "text": provenance.text}
    recipe = provenance.recipe
    name, model = recipe.model.name, find_model(recipe.model.name)
    return _template().render(
        front_matter=_front_matter(provenance, scores),
        method=_method(name, model),
        module="fusion.models" if name in MODELS else model.__module__,
        class_name=model.__name__,
        corpus=provenance.corpus,
        labels=provenance.labels,
        target=recipe.train.target,
        version=provenance.version,
        seed=provenance.seed,
        encoders={name: parts[name] for name in recipe.model.looks_at if parts[name] is not None},
        audio_frames=recipe.model.audio_frames,
        data=provenance.data,
        features=provenance.features,
        validation=provenance.validation,
        intervals=provenance.intervals,
        chosen=provenance.chosen,
        calibration=provenance.calibration,
        references=provenance.references,
        gain=provenance.gain,
        unlearned=provenance.unlearned,
        scores=scores,
        lead=recipe.train.metric,
        linear_path=recipe.own.linear_path,
        selects=recipe.train.select,
        titles={name: metric.title for name, metric in METRICS.items()},
        confidence=f"{CONFIDENCE:.0%}",
        resamples=RESAMPLES,
        direction=recipe.model.direction,
        parameters=json.dumps(recipe.to_json(), indent=2),
        onnx=onnx,
    )


def code(text: str) -> str:
    """`text` on one line as a span of code, which ends where it ends.

    >>> code("a `b`")
    '`` a `b` ``'
    """
    line = isolated(" ".join(text.split()))
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


MIXES = {
    "mean": "averaged",
    "sum": "added up",
    "concat": "side by side",
    "stack": "mixed by weights that the model learned",
}


def describe_encoder(identity: Identity) -> str:
    """An encoder in a line, in Markdown: what a reader needs to find it; the identity has the rest."""
    fields = identity.fields
    layers = fields.get("layers") or []
    mix = MIXES[str(fields.get("mix", "stack"))]
    said = {
        "revision": code(str(fields["revision"])) if fields.get("revision") else None,
        "layer" if len(layers) == 1 else "layers": ", ".join(map(str, layers)) or None,
        "frames normalised by": fields.get("frames"),
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
    corpus = isolated(" ".join(note.name.split())) if note and note.name else "not stated"
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
        "md": escape_markdown,
        "code": code,
        "block": _block,
        "interval": bounds,
        "signed": partial(bounds, signed=True),
        "mean_std": _mean_std,
        "encoder": describe_encoder,
        "title_of": lambda name: escape_markdown(METRICS[name].title),
    }
    environment.filters.update(filters)
    return environment.get_template("card.md.j2")
