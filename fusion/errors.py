"""Errors of fusion that a user can fix; a command prints them as one line and exits with status 2.

ErcError                  pipeline.settings, the root; BusyError, another process writes the same output, is there, too
|-- FeatureError          the feature file lacks what training or evaluation needs
|-- TrainingError         training cannot go on: no such device, a loss that is not finite
|-- RecordingError          a turn to be predicted is not what it must be, or is asked for in a way that does not fit
|-- ModelError            a model folder is missing, incomplete or damaged, or does not fit the features
|-- ResultError           results to be joined are missing or damaged, or not folds of one study
`-- OutputError           a result cannot be written: disk full, no permission, something else in its place
"""

from pipeline.settings import ErcError


class FeatureError(ErcError):
    """The feature file lacks what training or evaluation needs."""


class TrainingError(ErcError):
    """Training cannot start or go on."""


class RecordingError(ErcError):
    """A turn to be predicted is not what it must be, or is asked for in a way that does not fit."""


class ModelError(ErcError):
    """A model folder is missing, incomplete or damaged, or does not fit the features."""


class ResultError(ErcError):
    """Results to be joined are missing or damaged, or not folds of one study."""


class OutputError(ErcError):
    """A result cannot be written."""
