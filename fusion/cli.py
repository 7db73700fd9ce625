"""The commands of fusion. Heavy libraries are imported when a command runs, so that `--help` answers at once."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.settings import (
    DEFAULT_PARAMS,
    Device,
    OptionalParams,
    Overrides,
    Overwrite,
    find_params,
    say,
    single_command,
)

if TYPE_CHECKING:
    from fusion.params import FoldParams

SECTIONS = {
    "model": "fusion.params:ModelParams",
    "loss": "fusion.params:LossParams",
    "train": "fusion.params:TrainParams",
    "evaluate": "fusion.params:EvaluateParams",
    "folds": "fusion.params:FoldParams",
    "ablations": "pipeline.settings:Section",  # any names
    "cluster": "pipeline.settings:ClusterParams",
}
command = partial(single_command, sections=SECTIONS, one_thread=True)
resumable = partial(command, goes_on=True)
encoding = partial(  # takes every core
    single_command, sections={"dataset": "pipeline.settings:Section", "model": SECTIONS["model"]}
)


def complete_only(context: typer.Context) -> list[str]:
    """What `--only` may go on with: the names of section `ablations`."""
    from pipeline.settings import SettingsError, read_document

    try:
        sets = read_document(context.params.get("params") or DEFAULT_PARAMS).get("ablations") or {}
    except SettingsError:
        sets = {}
    blank = "\\ " if "COMP_WORDS" in os.environ else " "  # bash puts what it is given on the command line as it is
    return ["base", *(str(name).replace(" ", blank) for name in sets)]


FeatureFile = Annotated[Path, typer.Option(help="The joint feature file, such as data/feats.h5.")]
ModelFolder = Annotated[Path | None, typer.Option(help="The model folder; models/<model.name> by default.")]
ManifestFile = Annotated[
    Path | None, typer.Option(help="Texts and statuses; manifest.jsonl beside the feature file where it is there.")
]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="Runs side by side on this machine; one for each core by default, one on a GPU."),
]


def manifest_beside(features: Path) -> Path | None:
    """The manifest beside a feature file, where it is there."""
    path = features.with_name("manifest.jsonl")
    return path if path.exists() else None


@resumable
def train_app(
    features: FeatureFile,
    params: OptionalParams = None,
    overrides: Overrides = [],  # noqa: B006
    output: ModelFolder = None,
    jobs: Jobs = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Train the model of params.yaml with every seed, selected on validation. An interrupted run goes on."""
    from fusion.params import read_recipe, report_unused
    from fusion.runtime import pick_device
    from fusion.training import train_seeds, training_headline
    from pipeline.store import read_features

    recipe = read_recipe(find_params(params), overrides)
    report_unused(overrides, [recipe])
    output = output or Path("models") / recipe.model.name
    trained = train_seeds(read_features(features), recipe, output, pick_device(device), jobs, overwrite)
    say(f"{output}: {training_headline(trained)}")


@command
def evaluate_app(
    features: FeatureFile,
    models: ModelFolder = None,
    params: OptionalParams = None,
    overrides: Overrides = [],  # noqa: B006
    output: Annotated[Path, typer.Option(help="Where the result files go.")] = Path("results"),
    degraded: Annotated[
        Path | None, typer.Option(help="What pipeline-degrade wrote; degraded/ beside the feature file by default.")
    ] = None,
    manifest: ManifestFile = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Score the trained models of all seeds on the test split, clean and degraded, and write the result files."""
    from fusion.evaluation import (
        RESULT,
        check_results,
        current_commit,
        evaluate_all,
        headline,
        read_degraded,
        read_records,
        write_report,
    )
    from fusion.params import EvaluateParams, TrainParams, read_model_folder
    from fusion.runtime import pick_device, replacing, writing
    from pipeline.settings import read_section
    from pipeline.store import read_features

    path = find_params(params)
    section = read_section(path, "evaluate", EvaluateParams, overrides)
    models = read_model_folder(path, overrides, models)
    joint, chosen, commit = read_features(features), pick_device(device), current_commit()
    parts, records = read_degraded(degraded, joint), read_records(manifest or manifest_beside(features), joint)
    memory = read_section(path, "train", TrainParams, overrides).memory
    with replacing(output, RESULT):
        if not overwrite:
            check_results(output, models, joint, section)
        with writing(output):  # now, rather than after all is scored
            output.mkdir(parents=True, exist_ok=True)
        evaluation, robustness = evaluate_all(joint, models, section, parts, chosen, memory)
        changed = write_report(evaluation, output, commit, records, robustness)
    say(f"{output}: {headline(evaluation)}{'' if changed else '; all files were there already, unchanged'}")


@resumable
def ablate_app(
    features: FeatureFile,
    params: OptionalParams = None,
    overrides: Overrides = [],  # noqa: B006
    output: Annotated[Path, typer.Option(help="Where the tables go; finished runs in its folder 'ablations'.")] = Path(
        "results"
    ),
    only: Annotated[
        list[str], typer.Option(metavar="NAME", help="A set of the table; repeatable.", autocompletion=complete_only)
    ] = [],  # noqa: B006
    jobs: Jobs = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Train and score the sets of section ablations with every seed, compare them. An interrupted table goes on."""
    from pipeline.settings import SettingsError

    path = find_params(params)
    if path is None and not any(override.startswith("ablations.") for override in overrides):
        raise SettingsError(f"no {DEFAULT_PARAMS} here, so there are no sets of ablations; name one with --params")
    _ablate(features, path, overrides, output, only, jobs, device, overwrite)


def _ablate(
    features: Path,
    path: Path | None,
    overrides: list[str],
    output: Path,
    only: list[str],
    jobs: int | None,
    device: str,
    overwrite: bool,
    folds: "FoldParams | None" = None,
) -> None:  # nine: the options of two commands
    import torch

    from fusion.ablation import TABLE, ablate, check_table, compare, headline, read_variants, write_table
    from fusion.evaluation import current_commit
    from fusion.params import EvaluateParams
    from fusion.runtime import pick_device, replacing
    from pipeline.settings import ClusterParams, connect, read_section
    from pipeline.store import read_features

    variants, section = read_variants(path, overrides, only), read_section(path, "evaluate", EvaluateParams, overrides)
    joint, engine = read_features(features), read_section(path, "cluster", ClusterParams, overrides)
    with replacing(output, TABLE):
        if not overwrite:
            check_table(output, joint.digest, variants, section, folds)
        with connect(engine, device, torch.get_num_threads()) as cluster:
            where = torch.device(cluster.device) if cluster else pick_device(device)
            ablation = ablate(joint, variants, section, output / "ablations", where, jobs, cluster, folds)
        comparison = compare(ablation)
        write_table(comparison, output, current_commit())
    say(f"{output}: {headline(comparison)}")


@command
def report_app(
    features: FeatureFile,
    models: ModelFolder = None,
    params: OptionalParams = None,
    overrides: Overrides = [],  # noqa: B006
    results: Annotated[Path, typer.Option(help="What fusion-evaluate wrote.")] = Path("results"),
    manifest: ManifestFile = None,
    root: Annotated[
        Path | None,
        typer.Option(
            help="The corpus, in which the manifest names recordings; dataset.root of params.yaml by default."
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="The text encoder's tokenizer.json or folder, where it is not found by itself: names the tokens."
        ),
    ] = None,
    beside: Annotated[
        Path | None, typer.Option(help="Another model's folder, to see both side by side on every turn.")
    ] = None,
    split: Annotated[str, typer.Option(help="Whose turns: train, validation, test or all.")] = "test",
    output: Annotated[Path, typer.Option(help="The folder of the page.")] = Path("results/report"),
    device: Device = "auto",
) -> None:
    """Write an evaluation as one page to open in a browser: scores, and every turn with what the models say of it."""
    from fusion.errors import ResultError
    from fusion.params import TrainParams, read_model_folder
    from fusion.report import PAGE, Sources, read_places, write_page
    from fusion.runtime import pick_device
    from pipeline.settings import read_section
    from pipeline.store import read_features

    path = find_params(params)
    models = read_model_folder(path, overrides, models)
    memory = read_section(path, "train", TrainParams, overrides).memory
    corpus, text = read_places(path)
    if root and not root.is_dir():
        raise ResultError(f"{root}: no such folder; --root names the one in which the recordings of the manifest lie")
    if tokenizer and not tokenizer.exists():
        raise ResultError(f"{tokenizer}: no such file or folder; --tokenizer names the text encoder's tokenizer.json")
    places = [tokenizer] if tokenizer else [*([text] if text else []), Path("models/encoders/text")]
    sources = Sources(manifest or manifest_beside(features), root or corpus, places, beside)
    page = write_page(read_features(features), models, results, split, sources, output, pick_device(device), memory)
    held = f"{page.turns} turns, {page.viewed} with views, {page.recordings} recordings"
    say(f"{output / PAGE}: {held}, {page.size / 1e6:.1f} MB")


@resumable
def folds_app(
    results: Annotated[
        list[Path] | None,
        typer.Argument(help="Results of folds that are there, as fusion-evaluate wrote them: join them."),
    ] = None,
    features: Annotated[Path | None, typer.Option(help="Or: make the folds of this joint feature file.")] = None,
    params: OptionalParams = None,
    overrides: Overrides = [],  # noqa: B006
    output: Annotated[Path, typer.Option(help="Where the results go; finished runs in its folder 'ablations'.")] = Path(
        "results/folds"
    ),
    only: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="With --features: a set of section ablations; repeatable. Without: base, the model of params.yaml.",
            autocompletion=complete_only,
        ),
    ] = [],  # noqa: B006
    every: Annotated[bool, typer.Option("--all", help="With --features: every set of section ablations.")] = False,
    jobs: Jobs = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Cross-validate over the folds of one feature file (section folds), or join the results of folds. An interrupted
    run goes on.
    """
    from fusion.errors import ResultError

    if bool(results) == bool(features):
        raise ResultError("name the results of folds, or --features to make folds of; one of the two")
    if every and only:
        raise ResultError("--all runs every set of ablations and --only those that it names; give one of the two")
    if features:
        from fusion.params import FoldParams
        from pipeline.settings import read_section

        folds = read_section(find_params(params), "folds", FoldParams, overrides)
        _ablate(
            features,
            find_params(params),
            overrides,
            output,
            [] if every else only or ["base"],
            jobs,
            device,
            overwrite,
            folds,
        )
        return
    from fusion.evaluation import folds_headline, join_folds, write_folds
    from fusion.params import EvaluateParams
    from pipeline.settings import read_section

    joined = join_folds(results or [], read_section(find_params(params), "evaluate", EvaluateParams, overrides))
    changed = write_folds(joined, output, overwrite)
    say(f"{output}: {folds_headline(joined)}{'' if changed else '; all files were there already, unchanged'}")


@encoding
def predict_app(
    model: Annotated[
        Path, typer.Option("--model", "--models", help="The folder of a seed, or of all seeds: their mean.")
    ],
    table: Annotated[Path | None, typer.Option(help="Turns: .csv, .tsv, .jsonl or .parquet, one row a turn.")] = None,
    audio: Annotated[list[str], typer.Option(metavar="FILE", help="A turn's recording; repeatable, '' = none.")] = [],  # noqa: B006
    text: Annotated[list[str], typer.Option(metavar="TEXT", help="A turn's words; repeatable, '' = none.")] = [],  # noqa: B006
    speaker: Annotated[list[str], typer.Option(metavar="NAME", help="A turn's speaker; repeatable.")] = [],  # noqa: B006
    features: Annotated[Path | None, typer.Option(help="A joint feature file, in place of recordings.")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Answer turns from standard input, a JSON line each, one by one.")
    ] = False,
    root: Annotated[
        Path | None, typer.Option(help="Recordings of --table (its own folder by default) and --stream lie here.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of --features; all by default.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="A .jsonl or .csv file; JSON lines on standard output by default.")
    ] = None,
    params: Annotated[
        Path | None,
        typer.Option("--params", help="Its dataset.columns name the table's columns; params.yaml where it is here."),
    ] = None,
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="dataset.columns.NAME=COLUMN, or the model.name of a plug-in; repeatable.",
        ),
    ] = [],  # noqa: B006
    audio_encoder: Annotated[
        Path | None, typer.Option(help="The folder of the model's audio encoder, if it cannot be found from the model.")
    ] = None,
    text_encoder: Annotated[Path | None, typer.Option(help="The folder of the model's text encoder, likewise.")] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Predict the labels of new recordings and texts with trained models (docs/prediction.md)."""
    from fusion.prediction import Asked, predict

    asked = Asked(
        model, table, audio, text, speaker, features, stream, root, split, output, params, overrides, overwrite
    )
    asked.check()
    from fusion.params import trust_model_named
    from fusion.prediction import Predictor  # behind the check, because torch takes seconds to import
    from pipeline.settings import only_encode

    only_encode()
    trust_model_named(params, overrides)
    with Predictor.load(model, device, audio_encoder, text_encoder) as predictor:
        predict(asked, predictor)


@command
def export_app(
    model: Annotated[Path, typer.Argument(help="The folder of one seed, such as models/hbaf/seed-0.")],
    output: Annotated[Path, typer.Option(help="The folder to hand on.")],
    results: Annotated[
        Path | None, typer.Option(help="What fusion-evaluate wrote of the model: test scores for its card.")
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Add model.onnx, for onnxruntime.")] = False,
    accept_edits: Annotated[
        bool, typer.Option("--accept-edits", help="Take files that were edited after training, such as label names.")
    ] = False,
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="model.name=NAME", help="Of a plug-in, which is then imported.")
    ] = [],  # noqa: B006
    overwrite: Overwrite = False,
) -> None:
    """Make a folder to share of one trained model: weights, configuration, a card with its scores, ONNX."""
    from fusion.checkpoint import share_model
    from fusion.params import trust_model_named

    trust_model_named(None, overrides)
    shared = share_model(model, output, results, onnx, accept_edits, overwrite)
    loaded = shared.model
    extras = [*(["test scores"] if results else []), *(["ONNX"] if onnx else [])]
    name, seed = loaded.provenance.recipe.model.name, loaded.provenance.seed
    say(
        f"{output}: {name}, seed {seed}, {'with ' + ' and '.join(extras) if extras else 'as trained'}"
        f"{'' if shared.written else '; it was there already, unchanged'}"
    )
