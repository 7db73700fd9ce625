"""The pipeline's errors; the whole tree is drawn in `pipeline.settings`."""

from pipeline.settings import ErcError


class StoreError(ErcError):
    """A feature file is missing, damaged, from another version, or not what it claims to be."""


class DataError(ErcError):
    """A table, a manifest or a recording is not what it must be."""


class EncoderError(ErcError):
    """A model cannot be found, loaded or run as asked."""
