"""The commands that README and docs tell their readers to type."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from typer.main import get_command

from pipeline.settings import read_section
from tests.test_readme import APPS, SECTIONS

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
BEGINNINGS = re.compile("(fusion-|pipeline-|(dvc|python|git|hf|pip|uv|ray|jupyter|for|source|make) )")
BLOCK = re.compile(r"^```\w*\n(.*?)^```$|((?:^ {4}[^\n]*\n)(?:^(?: {4}[^\n]*)?\n)*)", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One line of a block."""

    page: str
    text: str  # without its comment

    @property
    def name(self) -> str:
        """What is called."""
        return self.text.split()[0]


def blocks_of(page: str) -> list[str]:
    """Fenced and indented blocks, without their fences and indentation."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = BLOCK.finditer(text)
    return [match[1] or re.sub(r"^ {4}", "", match[2] or "", flags=re.MULTILINE) for match in found]


def commands_of(page: str) -> list[Command]:
    """In their order; a script is no command."""
    lines = [line for block in blocks_of(page) if not block.startswith("#!") for line in block.splitlines()]
    return [Command(page, re.split(r"\s{2,}#", line)[0].strip()) for line in lines if BEGINNINGS.match(line)]


def commands_in_prose(page: str) -> list[Command]:
    """Commands of ours with options, between backticks in a sentence or a table."""
    prose = BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    spans = re.findall(r"`((?:fusion|pipeline)-[a-z]+ [^`]*)`", prose)
    return [Command(page, " ".join(span.split())) for span in spans]


def check_options(command: Command, words: list[str]) -> None:
    """Hold a command of ours to its options, and its overrides to the parameters."""
    assert command.name in APPS, f"{command.page}: there is no {command.name}"
    known = {option for parameter in get_command(APPS[command.name]).params for option in parameter.opts}
    for word in words[1:]:
        if word.startswith("--"):
            assert word in known, f"{command.page}: {command.text}: no option {word}"
        elif re.fullmatch(r"\w+\.[\w.]+=.*", word):
            name = word.split("=")[0].rpartition(".")[0]
            name = name if name in SECTIONS else name.split(".")[0]
            read_section(ROOT / "params.yaml", name, SECTIONS[name], [word])


def extras() -> set[str]:
    """What `erc-fusion[...]` may name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"])
