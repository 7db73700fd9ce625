"""The pipeline's errors; the whole tree is drawn in `pipeline.settings`."""

from pipeline.settings import ErcError


class StoreError(ErcError):
    """A feature file is missing, damaged, from another version, or not what it claims to be."""


class DataError(ErcError):
    """A table, a manifest or a recording is not what it must be."""


class ClipError(DataError):
    """The recording of one utterance is not what the manifest says, or gives no samples; `status` is the reason.

    The names are those of `pipeline.manifest`, and `changed`: another recording than the manifest was made from.
    """

    def __init__(self, message: str, utterance_id: str, status: str) -> None:
        super().__init__(message)
        self.utterance_id = utterance_id
        self.status = status


class EncoderError(ErcError):
    """A model cannot be found, loaded or run as asked."""
