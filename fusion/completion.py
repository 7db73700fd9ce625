"""What shells may complete on the command lines of fusion; `pipeline.settings.completion` says how."""

import os
from pathlib import Path

import typer

if "COMP_WORDS" in os.environ:  # bash asks what a command line may go on with
    from pipeline.settings import join_words

    join_words(os.environ)


def complete_set(begun: str) -> list[str]:
    """What `--set` may go on with."""
    from fusion.params import EvaluateParams, LossParams, ModelParams, TrainParams
    from pipeline.settings import ClusterParams, Section, complete_override

    sections: dict[str, type[Section]] = {
        "model": ModelParams,
        "loss": LossParams,
        "train": TrainParams,
        "evaluate": EvaluateParams,
        "cluster": ClusterParams,
    }
    return complete_override(begun, sections)


def complete_only(context: typer.Context, begun: str) -> list[str]:
    """What `--only` may go on with."""
    from pipeline.settings import complete_set_name

    return complete_set_name(context.params.get("params") or Path("params.yaml"))


def complete_device() -> list[str]:
    """What `--device` may go on with."""
    return ["auto", "cpu", "cuda"]
