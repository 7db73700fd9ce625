"""What shells may complete on the command lines of the pipeline; `pipeline.settings.completion` says how."""

import os

if "COMP_WORDS" in os.environ:  # bash asks what a command line may go on with
    from pipeline.settings import join_words

    join_words(os.environ)


def complete_set(begun: str) -> list[str]:
    """What `--set` may go on with."""
    from pipeline import params
    from pipeline.settings import ClusterParams, Section, complete_override

    sections: dict[str, type[Section]] = {
        "dataset": params.DatasetParams,
        "audio": params.AudioParams,
        "text": params.TextParams,
        "features": params.FeaturesParams,
        "import": params.ImportParams,
        "evaluate.degrade": params.DegradeParams,
        "cluster": ClusterParams,
    }
    return complete_override(begun, sections)


def complete_device() -> list[str]:
    """What `--device` may go on with."""
    return ["auto", "cpu", "cuda"]
