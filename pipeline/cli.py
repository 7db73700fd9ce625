"""The pipeline's commands. Heavy libraries are imported when a command runs, so that `--help` answers at once."""

import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline.settings import (
    DEFAULT_PARAMS,
    Device,
    OptionalParams,
    Overrides,
    Overwrite,
    ParamsFile,
    find_params,
    say,
    single_command,
)

SECTIONS = {
    "dataset": "pipeline.params:DatasetParams",
    "audio": "pipeline.params:AudioParams",
    "text": "pipeline.params:TextParams",
    "features": "pipeline.params:FeaturesParams",
    "import": "pipeline.params:ImportParams",
    "evaluate": "pipeline.settings:Section",  # fusion's, but for one group
    "evaluate.degrade": "pipeline.params:DegradeParams",
    "cluster": "pipeline.settings:ClusterParams",
}
DEFAULT_MANIFEST = Path("data/manifest.jsonl")

Features = Annotated[str | None, typer.Option(metavar="PATH[:KEY]", help="Features of this modality.")]
Lengths = Annotated[str | None, typer.Option(metavar="PATH[:KEY]", help="Rows of each utterance in one array of all.")]
Mask = Annotated[str | None, typer.Option(metavar="PATH[:KEY]", help="True where a padded array is real.")]
Ids = Annotated[str | None, typer.Option(metavar="PATH[:KEY]", help="Utterances of one array; else the table's order.")]
Manifest = Annotated[Path, typer.Option(help="The manifest that pipeline-prepare wrote.")]
Recordings = Annotated[Path, typer.Option("--manifest", help="The manifest, or recordings.jsonl beside it.")]
Texts = Annotated[Path, typer.Option("--manifest", help="The manifest, or texts.jsonl beside it.")]


class Modality(StrEnum):
    """What an encoder reads."""

    AUDIO = "audio"
    TEXT = "text"


command = partial(single_command, sections=SECTIONS)
resumable = partial(command, goes_on=True)


def announce(what: str) -> None:
    """Tell somebody at a terminal that libraries are being loaded, which takes seconds."""
    if sys.stderr.isatty():
        print(f"loading {what} ...", file=sys.stderr, flush=True)


@command
def prepare_app(
    output: Annotated[Path, typer.Option(help="Where the manifest goes.")] = DEFAULT_MANIFEST,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = [],  # noqa: B006
    strict: Annotated[bool, typer.Option("--strict", help="Refuse counts that are not the published ones.")] = False,
    link: Annotated[
        Path | None, typer.Option(help="Only make this link to the corpus, and those to local encoders; for dvc.yaml.")
    ] = None,
) -> None:
    """Read the corpus, settle its oddities, and write one record per utterance."""
    from pipeline.manifest import sole_manifest, write_manifest, write_sources
    from pipeline.params import AudioParams, DatasetParams, TextParams
    from pipeline.preparation import check_published, link_corpus, link_encoders, prepare, summary
    from pipeline.settings import read_section

    dataset = read_section(params, "dataset", DatasetParams, overrides)
    if link:
        audio = read_section(params, "audio", AudioParams, overrides)
        text = read_section(params, "text", TextParams, overrides)
        encoders = {
            "audio.encoder": audio.encoder,
            "audio.finetune.encoder": audio.finetune.encoder,
            "text.encoder": text.encoder,
            "text.finetune.encoder": text.finetune.encoder,
        }
        say("\n".join(filter(None, [link_corpus(dataset, link), link_encoders(encoders, link.with_name(".encoders"))])))
        return
    with sole_manifest(output):
        prepared = prepare(dataset)
        if not (strict and prepared.differences):
            write_manifest(output, prepared.utterances)  # before anything is printed, which may fail
            write_sources(output, prepared.utterances)
    say(summary(prepared))
    if strict:
        check_published(prepared)
    count = len(prepared.warnings)
    found = f", {count} warning{'s' if count > 1 else ''} above" if count else ""
    say(f"{output}: {len(prepared.utterances)} utterances{found}")


@resumable
def finetune_app(
    modality: Annotated[Modality, typer.Option(help="Which encoder learns.")],
    manifest: Manifest = DEFAULT_MANIFEST,
    output: Annotated[
        Path | None, typer.Option(help="The folder of the encoder; models/encoders/<modality> by default.")
    ] = None,
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = [],  # noqa: B006
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune an encoder on the labels of train, chosen on validation. An interrupted run goes on."""
    from pipeline.finetuning import turn_off
    from pipeline.params import AudioParams, DatasetParams, TextParams
    from pipeline.settings import read_section

    audio = read_section(params, "audio", AudioParams, overrides)
    text = read_section(params, "text", TextParams, overrides)
    output = output or Path("models/encoders") / modality
    if not (audio if modality == Modality.AUDIO else text).finetune.epochs:
        say(turn_off(output, modality))
        return
    announce("the encoder")
    from pipeline.finetuning import finetune_audio, finetune_text

    if modality == Modality.AUDIO:
        dataset = read_section(params, "dataset", DatasetParams, overrides)
        root, channels = Path(dataset.root), dataset.channels
        say(finetune_audio(manifest, output, audio, root, channels, device, overwrite).summary())
    else:
        say(finetune_text(manifest, output, text, device, overwrite).summary())


@resumable
def audio_app(
    manifest: Recordings = DEFAULT_MANIFEST,
    output: Annotated[Path, typer.Option(help="Where the features go.")] = Path("data/audio.h5"),
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = [],  # noqa: B006
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Encode the recordings to frames. An interrupted run goes on where it was."""
    from pipeline.params import AudioParams, DatasetParams
    from pipeline.settings import ClusterParams, connect, only_encode, read_section

    dataset = read_section(params, "dataset", DatasetParams, overrides)
    audio = read_section(params, "audio", AudioParams, overrides)
    root, engine = Path(dataset.root), read_section(params, "cluster", ClusterParams, overrides)
    announce("the encoder")
    only_encode()
    import torch

    from pipeline.extraction import extract_audio, extract_audio_on

    with connect(engine, device, torch.get_num_threads()) as cluster:
        extract = partial(extract_audio_on, cluster) if cluster else partial(extract_audio, device=device)
        outcome = extract(manifest, output, audio, root, dataset.channels, overwrite=overwrite)
        say(outcome.summary("recordings", "frames"))


@resumable
def text_app(
    manifest: Texts = DEFAULT_MANIFEST,
    output: Annotated[Path, typer.Option(help="Where the features go.")] = Path("data/text.h5"),
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = [],  # noqa: B006
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Encode the transcripts to tokens. An interrupted run goes on where it was."""
    from pipeline.params import TextParams
    from pipeline.settings import ClusterParams, connect, only_encode, read_section

    text = read_section(params, "text", TextParams, overrides)
    engine = read_section(params, "cluster", ClusterParams, overrides)
    announce("the encoder")
    only_encode()
    import torch

    from pipeline.extraction import extract_text, extract_text_on

    with connect(engine, device, torch.get_num_threads()) as cluster:
        extract = partial(extract_text_on, cluster) if cluster else partial(extract_text, device=device)
        say(extract(manifest, output, text, overwrite=overwrite).summary("texts", "tokens"))


@command
def join_app(
    manifest: Manifest = DEFAULT_MANIFEST,
    audio: Annotated[Path, typer.Option(help="The frames, or a joint file that holds them, as imports make.")] = Path(
        "data/audio.h5"
    ),
    text: Annotated[Path, typer.Option(help="The tokens, likewise.")] = Path("data/text.h5"),
    output: Annotated[Path, typer.Option(help="Where the joint file goes.")] = Path("data/feats.h5"),
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = [],  # noqa: B006
    copy: Annotated[bool, typer.Option("--copy", help="Write one self-contained file instead of links.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Join audio and text to the one file that fusion-train reads."""
    from pipeline.datasets import describe_corpus
    from pipeline.join import failures, join, stand_ins
    from pipeline.params import DatasetParams, FeaturesParams
    from pipeline.settings import read_section
    from pipeline.store import Contents, split_copies

    section = read_section(params, "features", FeaturesParams, overrides)
    dataset = read_section(params, "dataset", DatasetParams, overrides)
    corpus = describe_corpus(dataset, section.licence, section.corpus)
    features = join(manifest, audio, text, output, copy or section.copy_parts, corpus, overwrite)
    for note in (*failures(features), *stand_ins(features, dataset.name)):
        say(note)
    for line in split_copies(Contents.of(features), features.utterances.splits):
        say(f"warning: {line}")
    say(f"{output}: {len(features.utterances)} utterances, digest {features.digest[:12]}")


@command
def import_app(
    table: Annotated[
        Path | None,
        typer.Option(help="The utterances: .csv, .tsv, .jsonl or .parquet; without, those that a pickle names."),
    ] = None,
    audio: Features = None,
    audio_lengths: Lengths = None,
    audio_mask: Mask = None,
    audio_ids: Ids = None,
    text: Features = None,
    text_lengths: Lengths = None,
    text_mask: Mask = None,
    text_ids: Ids = None,
    output: Annotated[Path, typer.Option(help="Where the feature file goes.")] = Path("data/imported.h5"),
    params: OptionalParams = None,
    overrides: Overrides = [],  # noqa: B006
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse utterances without features, and the reverse.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Make a feature file of features that others made (docs/importing-features.md)."""
    from pipeline.imports import given_parts, import_features
    from pipeline.params import DatasetParams, ImportParams
    from pipeline.settings import read_section

    path = find_params(params)  # features need not lie in a project
    dataset = read_section(path, "dataset", DatasetParams, overrides)
    settings = read_section(path, "import", ImportParams, overrides)
    given = given_parts("audio", audio, audio_lengths, audio_mask, audio_ids)
    given += given_parts("text", text, text_lengths, text_mask, text_ids)
    say(import_features(table, given, output, settings, dataset, strict, overwrite).summary())


@resumable
def degrade_app(
    manifest: Manifest = DEFAULT_MANIFEST,
    output: Annotated[Path, typer.Option(help="The folder that is made to hold what is asked for.")] = Path(
        "data/degraded"
    ),
    params: ParamsFile = DEFAULT_PARAMS,
    overrides: Overrides = [],  # noqa: B006
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Encode the test split with word errors, a recogniser's words or noise: group evaluate.degrade of params.yaml."""
    from pipeline.params import AudioParams, DatasetParams, DegradeParams, TextParams
    from pipeline.settings import only_encode, read_section

    asked = read_section(params, "evaluate.degrade", DegradeParams, overrides)
    dataset = read_section(params, "dataset", DatasetParams, overrides)
    audio = read_section(params, "audio", AudioParams, overrides)
    text = read_section(params, "text", TextParams, overrides)
    announce("the encoders")
    only_encode()
    from pipeline.degradation import degrade

    root, channels = Path(dataset.root), dataset.channels
    say(degrade(manifest, output, asked, audio, text, root, channels, device, overwrite).summary())


@command
def inspect_app(
    file: Annotated[Path, typer.Argument(help="A feature file: data/feats.h5, data/audio.h5 or data/text.h5.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read every row and compare checksums.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is in a feature file."""
    from pipeline.inspect import inspect_file

    report = inspect_file(file, verify)
    say(report.to_json() if as_json else report.to_text())
