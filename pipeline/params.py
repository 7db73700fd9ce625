"""What the pipeline owns of params.yaml: `dataset`, `audio`, `text`, `features`, `import`, and `evaluate.degrade`."""

import codecs
import re
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from pipeline.settings import MODULE, PLACE, Precision, Section, UserPath, check_plugin_name


def _last_few(layers: object) -> object:
    if not (isinstance(layers, str) and re.fullmatch(r"last-[1-9]\d{0,3}", layers)):
        raise ValueError("input should be 'last-4'")
    return layers


Layers = (
    Literal["last", "all"]
    | Annotated[str, BeforeValidator(_last_few)]
    | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
)
Mix = Literal["mean", "sum", "concat", "stack"]  # of several layers; stack keeps all, for a learned mix in the model
Share = Annotated[float, Field(gt=0, lt=1)]
NoiseKind = Literal["white", "speech"]
Normalise = Literal["clip-band", "clip", "speaker", "none"]
Context = Literal["full", "clip"]

OwnCorpus = Literal["demo", "table", "meld", "iemocap", "mosi"]  # `pipeline.datasets.registry` has the adapters
CORPORA: tuple[str, ...] = get_args(OwnCorpus)
CORPUS_PLUGINS = "erc_fusion.corpora"  # entry points of installed packages that bring an adapter


def _names_an_adapter(name: str) -> str:
    expected = "the place of an adapter: my_package.module or module:function"
    return check_plugin_name(name, CORPUS_PLUGINS, expected, PLACE, MODULE)


def _names_an_encoding(name: str) -> str:
    try:
        known = codecs.lookup(name)
        "".encode(known.name), b"".decode(known.name)  # some codecs are not of texts
    except (LookupError, UnicodeError):
        raise ValueError(
            "input should be an encoding that Python knows, such as utf-8, gbk, mac_roman, cp1251"
        ) from None
    return name


class Columns(Section):
    """The user's name for each column; null means the field's own name, if the table has such a column."""

    id: str | None = None
    conversation: str | None = None
    turn: str | None = None
    speaker: str | None = None
    split: str | None = None
    label: str | None = None
    score: str | None = None
    text: str | None = None
    recognised: str | None = None  # what a speech recogniser made of the recording
    audio: str | None = None
    start: str | None = None
    end: str | None = None


class DatasetParams(Section):
    """Where the recordings and transcripts are, and how they are split."""

    # also a plug-in: an entry point of the group `erc_fusion.corpora`, my_package.module or module:function
    name: OwnCorpus | Annotated[str, AfterValidator(_names_an_adapter)] = "demo"
    root: UserPath = (
        "data/demo"  # folder of the release, or that holds the table; paths of recordings are relative to it
    )
    target: str | None = None  # what the label is; null: the corpus' own first one (`pipeline.datasets.corpus`)
    fold: Annotated[int, Field(ge=0, le=5)] = 0  # iemocap: the session that is the test split; 0: session 5
    validation_session: Annotated[int, Field(ge=0, le=5)] = 0  # iemocap: which validates; 0: conversations of train
    protocol: Literal["sdk", "62-31"] = "sdk"  # mosi: its splits, see `pipeline.datasets.mosi`
    table: UserPath = "utterances.csv"  # .csv, .tsv, .jsonl or .parquet, relative to root
    encoding: Annotated[str, AfterValidator(_names_an_encoding)] | None = (
        None  # of text files; null: UTF-8, see repairs
    )
    columns: Columns = Columns()
    labels: dict[str, Annotated[str, Field(min_length=1)] | None] = Field(
        default={}
    )  # the table's name -> what it becomes
    split: Literal["given", "conversation", "speaker"] = "given"  # given: validation is made where there is none
    validation_share: Share = 0.15  # of the utterances, for splits that are made
    test_share: Share = 0.2
    split_seed: int = 0
    channels: Literal["downmix", "center", "first", "auto"] = (
        "downmix"  # how several channels become one; auto: first in recordings whose mix cancels, else downmix
    )
    decode_seconds: Annotated[float, Field(gt=0, le=86_400)] = (
        60.0  # that decoding may go without progress: status timed-out
    )

    @property
    def source(self) -> str:
        """What messages name: the table, or the folder of a release."""
        return str(Path(self.root) / self.table) if self.name in ("demo", "table") else self.root

    @model_validator(mode="after")
    def _shares_leave_a_train_split(self) -> "DatasetParams":
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"validation_share {self.validation_share} and test_share {self.test_share} leave nothing for train"
            )
        return self


class FinetuneParams(Section):
    """An encoder that learns from the labels of train; the keys that both modalities have."""

    epochs: Annotated[int, Field(ge=0, le=100_000)] = 0  # at most; 0: fine-tuning is off
    encoder: UserPath = "tiny"  # where it starts: tiny | a Hugging Face name | a local folder
    revision: str | None = None
    patience: Annotated[int, Field(gt=0)] = 5  # epochs without a better validation score before stopping
    metric: Literal["weighted_f1", "macro_f1", "accuracy", "uar"] = "weighted_f1"  # on validation, selects the epoch
    batch_size: Annotated[int, Field(gt=0, le=10_000)] = 16
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4  # at its height, behind the warmup
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1  # of all steps
    class_weights: Literal["none", "balanced"] = "none"
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None  # of hidden states; None: the encoder's own
    precision: Precision = "float32"  # of matrix products and attention while it learns
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class FinetuneAudioParams(FinetuneParams):
    """A speech encoder that learns."""

    freeze_front_end: bool = True  # the convolutions stay as they are
    # shares of frames and of dimensions that are hidden while it learns (SpecAugment); None: the encoder's own
    mask_time: Annotated[float, Field(ge=0, lt=1)] | None = None
    mask_features: Annotated[float, Field(ge=0, lt=1)] | None = None
    max_seconds: Annotated[float, Field(ge=1, le=3_600)] = 10.0  # of a clip, its beginning; memory grows with it


class FinetuneTextParams(FinetuneParams):
    """A text encoder that learns."""

    max_tokens: Annotated[int, Field(ge=4, le=100_000)] = 128  # of a text, its beginning


class AudioParams(Section):
    """Recordings -> frames."""

    encoder: UserPath = "tiny"  # tiny | log-mel | egemaps | egemaps-functionals | a Hugging Face name | a local folder
    revision: str | None = None  # commit of a Hugging Face model
    layers: Layers = "last"  # hidden states to keep: 0 is the input of the first transformer layer
    mix: Mix = "mean"
    precision: Precision = "float32"  # of the encoder's arithmetic
    dtype: Literal["float16", "float32"] = "float16"  # of the stored features
    # seconds of audio in a batch, padding included; auto: found from the memory that is free
    batch: Literal["auto"] | Annotated[float, Field(gt=0, le=36_000)] = "auto"
    window_seconds: Annotated[float, Field(ge=2, le=3_600)] = 40.0  # longer clips are encoded in windows
    overlap_seconds: Annotated[float, Field(ge=0)] = 4.0
    decode_seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0  # that decoding may go without progress
    on_error: Literal["stop", "mark"] = (
        "stop"  # a recording that cannot be read now: stop, or leave its utterance empty
    )
    # of log-mel: each band over the clip | the level of the clip | each band over all clips of the speaker | none;
    # None: speaker. Of other encoders: each dimension of their frames over clips of the speaker; None: as they are.
    normalise: Normalise | None = None
    # of Whisper, also while it learns: each clip padded to what the model was trained on | its own length and a margin
    context: Context = "full"
    finetune: FinetuneAudioParams = FinetuneAudioParams()

    @model_validator(mode="after")
    def _normalises_what_it_may(self) -> "AudioParams":
        if self.normalise not in (None, "speaker") and self.encoder != "log-mel":
            raise ValueError(
                f"normalise is {self.normalise}: of encoder log-mel alone, and encoder is {self.encoder}, which "
                "normalises recordings as it was trained; set normalise to null, or to speaker for its frames"
            )
        return self

    @model_validator(mode="after")
    def _windows_advance(self) -> "AudioParams":
        if self.overlap_seconds > self.window_seconds / 2:
            raise ValueError(
                f"overlap_seconds {self.overlap_seconds} is more than half of window_seconds {self.window_seconds}"
            )
        return self


class TextParams(Section):
    """Transcripts -> tokens."""

    encoder: UserPath = "tiny"  # tiny | a Hugging Face name | a local folder
    revision: str | None = None
    layers: Layers = "last"
    mix: Mix = "mean"
    precision: Precision = "float32"
    dtype: Literal["float16", "float32"] = "float16"
    batch: Literal["auto"] | Annotated[int, Field(gt=0, le=10_000_000)] = "auto"  # tokens in a batch, padding included
    overlap_tokens: Annotated[int, Field(ge=0, le=100_000)] = (
        64  # between the windows of a text that exceeds the model's length
    )
    # turns of the same conversation that are read in front of an utterance and behind it, and who says each; rows are
    # then of the utterance's own tokens
    past_turns: Annotated[int, Field(ge=0, le=100)] = 0
    future_turns: Annotated[int, Field(ge=0, le=100)] = 0
    speakers: bool = False
    finetune: FinetuneTextParams = FinetuneTextParams()


class FeaturesParams(Section):
    """Audio and text -> one joint file."""

    copy_parts: bool = False  # true: a self-contained file instead of links (also pipeline-join --copy)
    corpus: Annotated[str, Field(min_length=1, max_length=200)] | None = None  # what it is called; null: its own name
    licence: Annotated[str, Field(min_length=1, max_length=2000)] | None = None  # of the data; null: the corpus' own


class ImportParams(Section):
    """Features that others made -> a feature file."""

    dtype: Literal["auto", "float16", "float32"] = "auto"  # auto: float16 stays, all else becomes float32
    not_finite: Literal["refuse", "zero"] = "refuse"  # NaN and infinite values
    padding: Literal["refuse", "zeros", "keep"] = "refuse"  # padded arrays that come without lengths and without a mask
    holes: Literal["refuse", "close"] = "refuse"  # masks with a gap between real positions
    normalise: Literal["none", "speaker"] = "none"  # audio; speaker: by mean and deviation of all rows of its speaker
    layout: tuple[str, ...] = ()  # names of the elements of a pickled tuple, where it is not a published one
    target: str = "labels"  # which element of a published pickle holds the labels
    label_names: tuple[str, ...] = ()  # of its label numbers 0, 1, 2 ..; without: the numbers themselves

    @field_validator("layout", "label_names")
    @classmethod
    def _differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names) or not all(names):
            raise ValueError("every name may be given once only, and none may be empty")
        return names


class DegradeParams(Section):
    """Group `evaluate.degrade`: the test split once more, with worse transcripts and recordings."""

    word_errors: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()  # chances of an error at each word; one study
    substitute: Annotated[float, Field(ge=0)] = 1.0  # how often an error is of this kind, relative to the other two
    delete: Annotated[float, Field(ge=0)] = 1.0
    insert: Annotated[float, Field(ge=0)] = 1.0
    recogniser: bool = False  # a study of the column dataset.columns.recognised
    noise: tuple[Annotated[float, Field(ge=-100, le=100)], ...] = ()  # signal-to-noise ratios in dB; one study
    noise_kind: NoiseKind = "white"  # white | speech: with the spectrum of the clip itself
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @field_validator("word_errors", "noise")
    @classmethod
    def _differ(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(levels)) < len(levels):
            raise ValueError("every level may be given once only")
        return levels

    @model_validator(mode="after")
    def _errors_are_of_some_kind(self) -> "DegradeParams":
        if not self.substitute + self.delete + self.insert:
            raise ValueError("substitute, delete and insert are all 0; let at least one kind of error happen")
        return self
