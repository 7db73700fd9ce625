"""What all commands share: their options, how errors and Ctrl-C end them, threads, and what shells complete.

    command = functools.partial(single_command, sections={"audio": "pipeline.params:AudioParams"})

    @command
    def audio_app(params: ParamsFile = DEFAULT_PARAMS, overrides: Overrides = []) -> None: ...

Without heavy libraries, so that `--help` answers at once. An error that the user can fix is one line on stderr and exit
status 2; so is a file that cannot be read or written. Ctrl-C is one line and exit status 130, and a second one ends the
process at once. Names of files, labels
and the like may come from strangers: control characters in messages are escaped, as `\\x1b`.
"""

import contextlib
import errno
import functools
import inspect
import io
import json
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TextIO, Union, get_args, get_origin
from unicodedata import normalize

import typer
from typer.core import TyperCommand

from pipeline.errors import DataError, ErcError, reason_and_fix, refuse_pipe

if TYPE_CHECKING:
    from pipeline.settings.sections import Section

DEFAULT_PARAMS = Path("params.yaml")
INTERRUPTED = "interrupted"
KEPT = "interrupted; what was finished is kept: run the same command again to go on"
BEGUN = "COMP_KEY"  # of the environment: the key of `key=value`, where the shell has split it
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]  # click's, of which typer has its own copy by now


def complete_set(context: typer.Context, begun: str) -> list[str]:
    """What `--set` may go on with: `section.key=`, and the values of the only key that is left, or its default."""
    values = dict(_known(context.obj, context.params.get("params") or DEFAULT_PARAMS))
    if BEGUN in os.environ:
        return values.get(os.environ[BEGUN], [])
    key, equals, _ = begun.partition("=")
    found = [name for name in values if (name == key if equals else name.startswith(key))]
    return [f"{name}={value}" for name in found for value in (values[name] if len(found) == 1 else [""])]


def _known(sections: Mapping[str, str], params: Path) -> Iterator[tuple[str, list[str]]]:
    """Keys with their values; of groups whose classes are loaded too late, those that stand in the file `params`."""
    from pipeline.settings.sections import SettingsError, read_document

    for name, place in sections.items():
        module, _, section = place.partition(":")
        kind: type[Section] = getattr(import_module(module), section)
        yield from _fields(name, kind)
        if kind.model_config.get("extra") == "allow":
            with contextlib.suppress(SettingsError):
                for group, content in (read_document(params).get(name) or {}).items():
                    for key, value in content.items() if isinstance(content, dict) else ():
                        yield f"{name}.{group}.{key}", _choices(type(value)) or [_written(value)]


def _fields(name: str, section: Any) -> Iterator[tuple[str, list[str]]]:
    for key, field in section.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from _fields(f"{name}.{key}", field.annotation)
        elif not field.exclude:  # a group of another owner
            default = field.get_default(call_default_factory=True)
            yield f"{name}.{key}", _choices(field.annotation) or [_written(default)]


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)


def _choices(annotation: Any) -> list[str]:
    """The values that a type names one by one."""
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType, Annotated) else ()
    return [choice for part in parts for choice in _choices(part)]


def join_words(environment: MutableMapping[str, str]) -> None:
    """Join `key`, `=`, `value` again, into which bash splits a word: of the last one it replaces `value` alone.

    >>> environment = {"COMP_WORDS": "t\\n--set\\nmodel.dim\\n=\\n32\\n--set\\nmodel.name\\n=\\nh", "COMP_CWORD": "8"}
    >>> join_words(environment)
    >>> environment["COMP_WORDS"].split(), environment["COMP_CWORD"], environment["COMP_KEY"]
    (['t', '--set', 'model.dim=32', '--set', 'h'], '4', 'model.name')
    """
    words = environment["COMP_WORDS"].split("\n")[: int(environment["COMP_CWORD"]) + 1]
    *before, last = re.sub(r"\n=(\n(?!--)|$|(?=\n))", "=", "\n".join(words)).split("\n")
    key, equals, value = last.partition("=")
    if equals and "=" in words[-2:]:
        option = key.startswith("--")
        before += [key] if option else []
        environment.update({} if option else {BEGUN: key})
        last = value
    environment.update(COMP_WORDS="\n".join([*before, last]), COMP_CWORD=str(len(before)))


if "COMP_WORDS" in os.environ:
    join_words(os.environ)


def printable(message: str) -> str:
    """`message` on one line, in which nothing hides that a stranger's file may have brought into it."""
    return escape_unseen(" ".join(filter(None, (line.strip(" \t\r") for line in message.split("\n")))))


def say(lines: str, file: TextIO | None = None) -> None:
    """Print what a command found, in which nothing hides, either; on standard output where no `file` is given."""
    with _printing():
        print("\n".join(map(escape_unseen, lines.split("\n"))), file=file)


@contextlib.contextmanager
def _printing() -> Iterator[None]:
    """What cannot be written is called output, which has no name of its own."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "output") from None


def escape_unseen(text: str) -> str:
    """`text` with everything escaped that nobody sees: controls, odd blanks, and accents that are apart from letters.

    >>> print(escape_unseen("happy\u200b, cafe\u0301"))
    happy\\u200b, cafe\\u0301
    """
    if text.isascii() and text.isprintable():
        return text
    shown = []
    for before, character in pairwise(" " + text):
        joins = len(normalize("NFC", before + character)) == 1 or normalize("NFC", character) != character
        shown.append(character if character.isprintable() and not joins else ascii(character)[1:-1])
    return "".join(shown)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"erc-fusion {version('erc-fusion')}")
        raise typer.Exit


ParamsFile = Annotated[Path, typer.Option("--params", help="The YAML file with the parameters.")]
OptionalParams = Annotated[
    Path | None,
    typer.Option("--params", help="The YAML file with the parameters; params.yaml where it is here, else defaults."),
]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a parameter; repeatable.", autocompletion=complete_set),
]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda or cuda:<n>.", autocompletion=lambda: ["auto", "cpu", "cuda"])
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace finished work of other parameters or inputs.")]
_Version = Annotated[bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)]


def find_params(given: Path | None) -> Path | None:
    """The file to read parameters from; None, after a line on stderr, where none is named and none is here."""
    if given is None and not DEFAULT_PARAMS.exists():
        print(f"{DEFAULT_PARAMS}: not here, so every parameter has its default", file=sys.stderr)
        return None
    return given or DEFAULT_PARAMS


def single_command(
    body: Callable[..., None], *, sections: Mapping[str, str], goes_on: bool = False, one_thread: bool = False
) -> typer.Typer:
    """A one-command typer app around `body`, with `-h` and `--version`.

    Args:
        sections: what `--set` may be of: where the class of each section or group is defined, as `module:Class`.
        goes_on: the next run keeps what was finished when Ctrl-C came.
        one_thread: for torch, where the user has not set OMP_NUM_THREADS. The operations of small models lose more time
            with threads that wait for each other than they gain, and one gives the same numbers on any number of cores.
    """

    @functools.wraps(body)
    def guarded(**arguments: Any) -> None:
        del arguments["version"]
        _CtrlC.line = KEPT if goes_on else INTERRUPTED
        try:
            _settle(one_thread)
            from pipeline.settings.sections import check_overrides

            check_overrides(arguments.get("overrides", ()), [name for name in sections if "." not in name])
            _check_files(arguments)
            body(**arguments)
            with _printing():
                sys.stdout.flush()
        except KeyboardInterrupt:
            line, _CtrlC.line = _CtrlC.line, ""
            _end(line, 130)
        except ErcError as error:
            _end(f"error: {error}", 2)
        except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
            _drop_output()
        except OSError as error:
            reason, fix = reason_and_fix(error, "fix the path or its permissions")
            place = error.filename
            if not place:  # of something without a name, such as memory that processes share
                place, reason = arguments.get("output") or "output", error.strerror or reason
            _end(f"error: {place}: {reason}; {fix}, then run the command again", 2)
        except (MemoryError, RuntimeError) as error:
            from pipeline.settings.machine import ran_out_of_memory

            if not ran_out_of_memory(error):
                raise
            _end(f"error: memory ran out ({error}); close other programs, or raise the limit (ulimit -a, the job's)", 2)

    signature = inspect.signature(body)
    asks_version = inspect.Parameter("version", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Version)
    guarded.__annotations__ = {**body.__annotations__, "version": _Version}
    vars(guarded)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), asks_version])
    # without rich, whose import takes longer than all else that --help needs
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    settings = {"help_option_names": ["--help", "-h"], "obj": MappingProxyType(sections)}
    app.command(cls=_Command, context_settings=settings)(guarded)
    return app


def _check_files(arguments: Mapping[str, Any]) -> None:
    """Refuse what is no file or folder, and an output in whose place lies what it is to be made of.

    Raises:
        DataError: an argument is a pipe or device, or is both read and written.
    """
    output = arguments.get("output")
    for name, value in arguments.items():
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, Path):
                refuse_pipe(path)
                if name != "output" and output and path.is_file() and output.is_file() and path.samefile(output):
                    raise DataError(f"{output}: is both read and written; name another file (--output)")


class _CtrlC:
    """Ends the process at the second Ctrl-C: libraries that are cut short while they clean up tell so at length."""

    line = ""  # to be printed, unless it was
    came = False

    @classmethod
    def handle(cls, *_: object) -> None:
        """Take the place of Python's own handler."""
        if cls.came:
            os.write(2, f"{cls.line}\n".encode() if cls.line else b"")
            os._exit(130)
        cls.came = True
        raise KeyboardInterrupt


class _Command(TyperCommand):
    """Its usage errors are printable, too, and a terminal that lacks a character is shown its number."""

    def main(self, *args: Any, **options: Any) -> Any:
        if not (args or options) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _CtrlC.handle)  # this process is the command's alone
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        _outlive_terminals()
        return super().main(*args, **options)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except USAGE_ERROR as error:
            vars(error)["message"] = printable(vars(error)["message"])
            raise


class _Terminal(io.FileIO):
    """Takes what is written after its window was closed: a run of hours goes on (disown, SIGHUP ignored)."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return len(content)


def _outlive_terminals() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream.isatty():
            terminal = io.BufferedWriter(_Terminal(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(terminal, stream.encoding, stream.errors, line_buffering=True))


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(escape_unseen, super().format(record).split("\n")))


def _settle(one_thread: bool) -> None:
    """To be called before torch is loaded."""
    if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
        sys.dont_write_bytecode = True  # Python would leave cut-off .pyc files, which no later run could load
    if one_thread:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        from pipeline.settings.precision import settle_cublas as settle
    else:
        from pipeline.settings.machine import settle_libraries as settle
    settle()
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


def _drop_output() -> None:
    """Lest Python tries again to write it when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(message: str, status: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    print(printable(message), file=sys.stderr)
    raise typer.Exit(status) from None
