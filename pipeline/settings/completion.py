"""What a shell may complete behind `--set`, `--device` and `--only`.

The shell runs the command itself to ask (typer's protocol: environment variables, of which bash sets `COMP_WORDS` and
`COMP_CWORD`). Bash also splits words at `=`, which the command line then has to be put together from again.
"""

import json
import os
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import create_model
from pydantic.fields import FieldInfo

from pipeline.settings.sections import Section, SettingsError, read_document

KEY = "COMP_KEY"  # of the environment: the part of the word before its `=`, where bash has split the word


def complete_override(begun: str, sections: Mapping[str, type[Section]]) -> list[str]:
    """Words that `--set` takes and that begin with `begun`: `section.key=`, and the values of a key that is told.

    A key whose values are not a short list offers its default.

    Args:
        begun: the word before the cursor, without what bash has split off.
        sections: by name, such as `model` or `evaluate.degrade`.
    """
    fields = {key: field for name, section in sections.items() for key, field in _fields(name, section)}
    if KEY in os.environ:
        return _values(fields.get(os.environ[KEY]))
    key, equals, _ = begun.partition("=")
    found = [key] if equals else [name for name in fields if name.startswith(begun)]
    if len(found) > 1:
        return [f"{name}=" for name in found]
    return [f"{name}={value}" for name in found for value in _values(fields.get(name))]


def complete_set_name(params: Path) -> list[str]:
    """Names of the sets of section `ablations` of the YAML file at `params`; none where it cannot be read."""
    try:
        sets = read_document(params).get("ablations") or {}
    except SettingsError:
        return []
    in_bash = "COMP_WORDS" in os.environ  # which puts what it is given on the command line as it is
    return ["base", *(str(name).replace(" ", "\\ ") if in_bash else str(name) for name in sets)]


def groups_of_section(params: Path, section: str) -> dict[str, type[Section]]:
    """Groups of keys in a section of the YAML file at `params`, by `section.group`; the values there as defaults."""
    try:
        content = read_document(params).get(section)
    except SettingsError:
        return {}
    found: dict[str, type[Section]] = {}
    for name, group in content.items() if isinstance(content, dict) else ():
        if isinstance(group, dict):
            keys: dict[str, Any] = {str(key): (type(value), value) for key, value in group.items()}
            found[f"{section}.{name}"] = create_model(str(name), __base__=Section, **keys)
    return found


def join_words(environment: MutableMapping[str, str]) -> None:
    """Mend `COMP_WORDS` and `COMP_CWORD`: `key`, `=`, `value` are one word.

    Of the word at the cursor, bash replaces the part behind `=` alone: that part stays, and `KEY` is set to the other.

    >>> environment = {"COMP_WORDS": "t\\n--set\\nmodel.dim\\n=\\n32\\n--set\\nmodel.name\\n=\\nh", "COMP_CWORD": "8"}
    >>> join_words(environment)
    >>> environment["COMP_WORDS"].split(), environment["COMP_CWORD"], environment["COMP_KEY"]
    (['t', '--set', 'model.dim=32', '--set', 'h'], '4', 'model.name')
    """
    words, cursor = environment["COMP_WORDS"].split("\n"), int(environment["COMP_CWORD"])
    joined: list[str] = []
    for index, word in enumerate(words[: cursor + 1]):
        assigned = joined and not word.startswith("--") and (word == "=" or words[index - 1] == "=")
        if assigned and not joined[-1].startswith("--"):
            joined[-1] += word
        elif word != "=":  # click takes `--option=value` and `--option value` alike
            joined.append(word)
    key, equals, value = joined[-1].partition("=")
    if equals and "=" in words[cursor - 1 : cursor + 1]:
        environment[KEY] = key
        joined[-1] = value
    environment.update(COMP_WORDS="\n".join(joined), COMP_CWORD=str(len(joined) - 1))


def _fields(name: str, section: type[Section]) -> Iterator[tuple[str, FieldInfo]]:
    """Dotted keys, those of groups inside the section too."""
    for key, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _fields(f"{name}.{key}", inner)
        elif not field.exclude:  # a group of another owner
            yield f"{name}.{key}", field


def _values(field: FieldInfo | None) -> list[str]:
    if field is None:
        return []
    if values := list(_literals(field.annotation)):
        return values
    default = field.get_default(call_default_factory=True)
    return [default if isinstance(default, str) else json.dumps(default, separators=(",", ":"))]


def _literals(annotation: Any) -> Iterator[str]:
    """The values that a type names one by one."""
    origin = get_origin(annotation)
    if annotation is bool:
        yield from ("true", "false")
    elif origin is Literal:
        yield from map(str, get_args(annotation))
    elif origin is Annotated:
        yield from _literals(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for one in get_args(annotation):
            yield from _literals(one)
