"""The audio and text stages on a cluster: actors load and encode batches, this process lays out the file and writes it.

Every actor makes the plan of the work itself, from the encoder that it loaded and the recordings that its node sees,
and refuses to work unless it is the plan of this process: the same weights, recordings and rows.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from pipeline.errors import DataError, EncoderError
from pipeline.extraction.engine import Encoded
from pipeline.extraction.stage import Outcome, Recordings, Work, fill, leave_empty, plan_text
from pipeline.manifest import Source, read_sources
from pipeline.media import Channels
from pipeline.params import AudioParams, TextParams
from pipeline.settings import Cluster, ClusterError
from pipeline.store import PartLayout

Params = TypeVar("Params", AudioParams, TextParams)

LOADED = 1  # batches in an actor that are loaded while others are encoded
BUILT_IN = ("tiny", "log-mel", "egemaps", "egemaps-functionals")


@dataclass(frozen=True)
class Transcripts:
    """What the stage `text` works on."""

    utterances: Sequence[Source]
    params: TextParams

    def plan(self, device: str, scratch: Path) -> Work:
        """Load the encoder, and plan."""
        from pipeline.encoders import due, load_text_encoder, read_learned

        encoder = load_text_encoder(self.params, device)
        learned = read_learned(self.params.encoder)
        return plan_text(due(self.utterances, encoder.context), encoder, self.params, learned=learned)

    def missing(self) -> list[Path]:
        """Transcripts come along with the utterances."""
        return []


def extract_audio_on(
    cluster: Cluster,
    manifest: Path,
    target: Path,
    params: AudioParams,
    root: Path,
    channels: Channels,
    overwrite: bool = False,
) -> Outcome:
    """Encode the recordings under `root`, which every node sees at the same path, to the part file `target`.

    Raises:
        ClusterError: actors cannot be started, or die at one batch again and again.
        DataError, EncoderError, StoreError, OSError: as `pipeline.extraction.extract_audio`, or because of a node that
            has other recordings or another encoder.
    """
    utterances = read_sources(manifest, "audio")
    if not any(utterance.samples for utterance in utterances):
        return leave_empty(target, utterances, "audio", params.dtype, overwrite)
    recordings = Recordings(utterances, _located(params), root.absolute(), channels)
    return _extract(cluster, target, recordings, "audio", overwrite)


def extract_text_on(
    cluster: Cluster, manifest: Path, target: Path, params: TextParams, overwrite: bool = False
) -> Outcome:
    """Encode the transcripts to the part file `target`; raises as `extract_audio_on` does."""
    utterances = read_sources(manifest, "text")
    if not any(utterance.text for utterance in utterances):
        return leave_empty(target, utterances, "text", params.dtype, overwrite)
    return _extract(cluster, target, Transcripts(utterances, _located(params)), "text", overwrite)


def _located(params: Params) -> Params:
    """The same with a local encoder's absolute path: actors have another working directory."""
    folder = Path(params.encoder).expanduser()
    if params.encoder in BUILT_IN or not folder.is_dir():
        return params
    return params.model_copy(update={"encoder": str(folder.absolute())})


def _extract(cluster: Cluster, target: Path, source: Recordings | Transcripts, name: str, overwrite: bool) -> Outcome:
    budget = None
    if cluster.device != "cpu":  # this machine need not have what an actor has
        budget = ask_an_actor(cluster, source)
    work = source.plan("cpu", target.parent)
    engine = RayEngine(cluster, source, work.layout, work.engine.side_by_side)
    work = replace(work, engine=engine, budget=budget if work.found and budget else work.budget)
    return fill(target, work, name, overwrite)


@dataclass
class Pieces:
    """Into how many pieces batches are cut, as far as is known: the most that an actor needed."""

    known: int = 1

    def raise_to(self, pieces: int) -> None:
        """At least so many."""
        self.known = max(self.known, pieces)


@dataclass(frozen=True)
class Asked:
    """What an actor is asked to encode.

    All batches of a run share one `pieces`: Ray copies it whenever a batch is handed over, so the actor, also one that
    takes the place of a dead one, gets what is known by then.
    """

    batch: Sequence[int]
    pieces: Pieces


class RayEngine:
    """Encodes in the actors of a cluster; an `Engine`."""

    def __init__(
        self, cluster: Cluster, source: Recordings | Transcripts, layout: PartLayout, side_by_side: int = 0
    ) -> None:
        self._cluster, self._layout = cluster, layout
        self.side_by_side = side_by_side if cluster.device == "cpu" else 0  # in an actor
        self._source = cluster.put(source)
        self._pieces = Pieces()

    def run(self, batches: Sequence[Sequence[int]], alone: bool = False) -> Iterator[Encoded]:
        """Encode all batches, in any order, in an actor without a GPU several side by side."""
        arguments = (self._source, self._layout, self._cluster.device, self._cluster.share.threads)
        asked = [Asked(batch, self._pieces) for batch in batches]
        for item, encoded in self._cluster.work(
            asked, make_encoder, *arguments, ahead=max(1, self.side_by_side) + LOADED
        ):
            if isinstance(encoded, ClusterError):
                name = self._layout.name(item.batch[0])
                raise ClusterError(f"the batch that begins with '{name}': {encoded}; finished batches are kept")
            self._pieces.raise_to(encoded.pieces)
            yield encoded

    def cut_into(self, pieces: int) -> None:
        """Have the batches that are not handed over yet cut into at least so many pieces."""
        self._pieces.raise_to(pieces)


def make_encoder(
    source: Recordings | Transcripts, expected: PartLayout, device: str, threads: int
) -> Callable[[Asked], Encoded]:
    """In an actor: what encodes a batch."""
    torch.set_num_threads(threads)
    work = source.plan(device, Path(tempfile.gettempdir()))
    _check_same(work.layout, expected, source)
    engine = work.engine

    def encode(asked: Asked) -> Encoded:
        torch.set_num_threads(threads)  # every thread has its own number
        engine.cut_into(asked.pieces.known)
        (encoded,) = engine.run([asked.batch])
        return encoded

    return encode


def _check_same(found: PartLayout, expected: PartLayout, source: Recordings | Transcripts) -> None:
    there, here = found.identity.fields, expected.identity.fields
    for field in here:
        if there.get(field) != here[field]:
            raise EncoderError(
                f"the encoder has {field} {there.get(field)} there, and {here[field]} where the command runs; all "
                "nodes must have the same model"
            )
    if found != expected:
        missing = source.missing()
        reason = f"{missing[0]} is not there" if missing else "their sizes differ"
        raise DataError(f"not the recordings that the command sees: {reason}; every node must see dataset.root")


def ask_an_actor(cluster: Cluster, source: Recordings | Transcripts) -> int:
    """How much a batch may hold in an actor."""
    ((_, answer),) = cluster.work([None], make_teller, source, cluster.device)
    if isinstance(answer, ClusterError):
        raise answer
    share = cluster.share.gpus if 0 < cluster.share.gpus < 1 else 1.0  # others take the rest of the memory
    return max(1, int(answer * share))


def make_teller(source: Recordings | Transcripts, device: str) -> Callable[[None], int]:
    """In an actor: what says how much a batch may hold."""
    budget = source.plan(device, Path(tempfile.gettempdir())).budget
    return lambda _: budget
