"""What the commands of fusion share: options and how shells complete them, how errors are told, where parameters are
read from.

Without heavy libraries, so that `--help` answers at once.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

if "COMP_WORDS" in os.environ:  # bash asks what a command line may go on with
    from pipeline.settings import join_words

    join_words(os.environ)


def complete_set(context: typer.Context, begun: str) -> list[str]:
    """What `--set` may go on with; the groups of models as params.yaml has them, since their classes load torch."""
    from fusion.params import EvaluateParams, LossParams, ModelParams, TrainParams
    from pipeline.settings import ClusterParams, Section, complete_override, groups_of_section

    sections: dict[str, type[Section]] = {
        "model": ModelParams,
        "loss": LossParams,
        "train": TrainParams,
        "evaluate": EvaluateParams,
        "cluster": ClusterParams,
    }
    groups = groups_of_section(context.params.get("params") or Path("params.yaml"), "model")
    return complete_override(begun, sections | groups)


def complete_only(context: typer.Context, begun: str) -> list[str]:
    """What `--only` may go on with."""
    from pipeline.settings import complete_set_name

    return complete_set_name(context.params.get("params") or Path("params.yaml"))


def complete_device() -> list[str]:
    """What `--device` may go on with."""
    return ["auto", "cpu", "cuda"]


FeatureFile = Annotated[Path, typer.Option(help="The joint feature file, such as data/feats.h5.")]
ParamsFile = Annotated[
    Path | None, typer.Option("--params", help="The YAML file with the parameters; params.yaml where it is there.")
]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a parameter; repeatable.", autocompletion=complete_set),
]
ModelFolder = Annotated[Path | None, typer.Option(help="The model folder; models/<model.name> by default.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<n>.", autocompletion=complete_device)]

Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="Runs side by side on this machine; one for each core by default, one on a GPU."),
]

INTERRUPTED = "interrupted"
KEPT = "interrupted; what was finished is kept: run the same command again to go on"
DEFAULT_PARAMS = Path("params.yaml")


def command(body: Callable[..., None], goes_on: bool = False, encodes: bool = False) -> typer.Typer:
    """A one-command typer app around `body`; an error that the user can mend is one line and exit status 2.

    Ctrl-C is one line and exit status 130; `goes_on` if the next run then keeps what was finished. One that `encodes`
    takes every core, and reads the section of the data alone.
    """

    @functools.wraps(body)
    def guarded(**arguments: Any) -> None:
        # Before torch is imported. The operations are so small that more threads lose more time waiting for each other
        # than they gain; one also gives the same numbers whatever the number of cores. Larger models: set it higher.
        if not encodes:
            os.environ.setdefault("OMP_NUM_THREADS", "1")
        try:
            from pipeline.settings import FUSION_SECTIONS, ErcError, check_overrides, settle_cublas, settle_libraries

            settle_cublas()
            if encodes:
                settle_libraries()
            try:
                check_overrides(arguments.get("overrides", ()), ("dataset",) if encodes else FUSION_SECTIONS)
                body(**arguments)
                sys.stdout.flush()
            except ErcError as error:
                print(f"error: {printable(str(error))}", file=sys.stderr)
                raise typer.Exit(2) from None
            except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            print(KEPT if goes_on else INTERRUPTED, file=sys.stderr)
            raise typer.Exit(130) from None

    # without rich, whose import takes longer than all else that --help needs
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(guarded)
    return app


resumable = functools.partial(command, goes_on=True)
encoding = functools.partial(command, encodes=True)


def printable(message: str) -> str:
    """`message` on one line and without control characters, which a stranger's file may have brought into it."""
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in " ".join(message.split())
    )


def find_params(given: Path | None) -> Path | None:
    """The file to read parameters from; None, after a line on stderr, where none is named and none is here."""
    if given is None and not DEFAULT_PARAMS.exists():
        print(f"{DEFAULT_PARAMS}: not here, so every parameter has its default", file=sys.stderr)
        return None
    return given or DEFAULT_PARAMS
