"""Write docs/commands.md: every command with its options, as the commands themselves know them.

python scripts/commands_page.py > docs/commands.md
"""

import importlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer import Context
from typer.main import get_command

HEAD = """# Commands

All commands with all options. The page of [parameters](parameters.md) explains `--set` and `params.yaml`; every command
has `--help` or `-h`, and `--version`.

An error is one line on stderr, with exit status 2; a misspelt option comes with the usage. Ctrl-C is one line with exit
status 130, which says whether what was finished is kept. Progress bars are drawn at a terminal alone.

**Completion.** `--install-completion` adds a command's completion to the shell that asks, bash, zsh or fish: options,
keys and values of `--set`, devices, the sets of `fusion-ablate --only`. For all commands, in the project's folder:

    for command in .venv/bin/{pipeline,fusion}-*; do "$command" --install-completion; done

`--show-completion` prints the script instead. What every command has is left out below.
"""
LEFT_OUT = {"--install-completion", "--show-completion", "--help", "--version"}
ROOT = Path(__file__).parents[1]


def main() -> None:
    """Print the page."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    print(page(scripts), end="")


def page(scripts: dict[str, str]) -> str:
    """The page on `scripts`: by command, where its app is (`module:name`)."""
    return "\n".join([HEAD, *(line for name, place in scripts.items() for line in _section(name, place))])


def _section(name: str, place: str) -> Iterator[str]:
    module, attribute = place.split(":")
    command = get_command(getattr(importlib.import_module(module), attribute))
    context: Any = Context(command, info_name=name)
    yield f"## {name}\n\n{_plain(command.help or '')}\n\n| | |\n|---|---|"
    for parameter in command.params:
        told = parameter.get_help_record(context)
        if told and not LEFT_OUT & set(parameter.opts):
            name = told[0].replace("|", " or ")
            yield f"| `{name}` | {_plain(told[1])} |"
    yield ""


def _plain(text: str) -> str:
    """One line that a table can hold."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main()
