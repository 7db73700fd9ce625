"""Recordings and transcripts -> one file of cached wav2vec2 frames and BERT tokens.

What Python programs use is here (docs/from-python.md); the commands call the same functions. Nothing is imported before
it is used.

>>> import pipeline
>>> pipeline.prepare("data/manifest.jsonl", dataset={"name": "table", "root": "/data/interviews"})  # doctest: +SKIP
>>> pipeline.encode("data/manifest.jsonl", "data/feats.h5", params="params.yaml")                   # doctest: +SKIP
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from pipeline.preparation import Prepared

__all__ = ["encode", "prepare"]


def prepare(
    output: str | PathLike[str], *, dataset: Mapping[str, Any] | None = None, params: str | PathLike[str] | None = None
) -> "Prepared":
    """Read a corpus, settle its oddities, decode every recording once, and write the manifest `output`.

    Args:
        dataset: section `dataset` of params.yaml, such as `{"name": "table", "root": "/data/interviews"}`.
        params: a params.yaml whose values hold where `dataset` names none; without it, the defaults.

    Returns:
        The utterances, each with its status; what was repaired on the way; differences to published counts.

    Raises:
        SettingsError: a key or value is not accepted.
        DataError: the corpus is not what it must be.
        OSError: the manifest cannot be written.
    """
    from pipeline.manifest import sole_manifest, write_manifest, write_sources
    from pipeline.params import DatasetParams
    from pipeline.preparation import prepare as read_and_probe
    from pipeline.settings import as_overrides, read_section

    section = read_section(_path(params), "dataset", DatasetParams, as_overrides(dataset=dataset))
    with sole_manifest(Path(output)):
        prepared = read_and_probe(section)
        write_manifest(Path(output), prepared.utterances)
        write_sources(Path(output), prepared.utterances)
    return prepared


def encode(
    manifest: str | PathLike[str],
    output: str | PathLike[str],
    *,
    dataset: Mapping[str, Any] | None = None,
    audio: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    features: Mapping[str, Any] | None = None,
    params: str | PathLike[str] | None = None,
    device: "str | torch.device" = "auto",
    overwrite: bool = False,
) -> Path:
    """Encode what `prepare` wrote: `audio.h5` and `text.h5` beside `output`, which joins them.

    An interrupted call is continued by the next one. Encoding is done by this machine, whatever `cluster.engine` is.

    Args:
        manifest: what `prepare` wrote.
        output: the feature file, such as data/feats.h5.
        dataset, audio, text, features: sections of params.yaml; `dataset` as given to `prepare`.
        params: a params.yaml whose values hold where these name none; without it, the defaults.
        device: auto, cpu, cuda or cuda:<n>.
        overwrite: whether other features in these files may be replaced; the very same are not encoded again.

    Returns:
        `output`, which `fusion.load_features` opens.

    Raises:
        SettingsError: a key or value is not accepted.
        DataError: a recording is not what the manifest says.
        EncoderError: an encoder cannot be loaded, or one utterance alone exceeds the memory.
        StoreError, OSError: a file cannot be written.
    """
    from pipeline.datasets import describe_corpus
    from pipeline.extraction import extract_audio, extract_text
    from pipeline.join import join
    from pipeline.params import AudioParams, DatasetParams, FeaturesParams, TextParams
    from pipeline.settings import as_overrides, as_torch_starts, keep_generators, read_section, settle_libraries

    settle_libraries()
    file, overrides = _path(params), as_overrides(dataset=dataset, audio=audio, text=text, features=features)
    corpus = read_section(file, "dataset", DatasetParams, overrides)
    speech, words = (
        read_section(file, "audio", AudioParams, overrides),
        read_section(file, "text", TextParams, overrides),
    )
    joint = read_section(file, "features", FeaturesParams, overrides)
    source, target = Path(manifest), Path(output)
    parts = target.with_name("audio.h5"), target.with_name("text.h5")
    with as_torch_starts(), keep_generators():
        extract_audio(source, parts[0], speech, Path(corpus.root), corpus.channels, str(device), overwrite)
        extract_text(source, parts[1], words, str(device), overwrite)
    join(source, *parts, target, joint.copy_parts, describe_corpus(corpus, joint.licence, joint.corpus), overwrite)
    return target


def _path(given: str | PathLike[str] | None) -> Path | None:
    return None if given is None else Path(given)
