"""One section of `params.yaml` -> a frozen pydantic model, strictly, or an error that a user can act on.

Every stage owns one section and describes it as a subclass of `Section`. `read_section` reads the file, applies
`key=value` overrides given on the command line, and checks keys, types and ranges. All problems of a section are
reported in one error, each with the file, the key, what was found and what is accepted.

The root of this project's errors also lives here, since both packages build on it:

    ErcError                  anything that the user can fix: one line on stderr, exit status 2
    |-- SettingsError         params.yaml or --set
    |-- ClusterError          Ray is not there, or its workers cannot do the work (pipeline.settings.cluster)
    |-- StoreError            a feature file (pipeline.store)
    |-- DataError             recordings, transcripts, tables, manifests (pipeline)
    |   `-- ClipError         one recording, with its utterance and status
    |-- EncoderError          a model name, folder or its weights (pipeline)
    `-- fusion's own          see fusion/errors.py
"""

import difflib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from pipeline.errors import ErcError, refuse_pipe, suggest

SECTION_NAMES = (
    *("dataset", "audio", "text", "features", "import", "evaluate", "cluster"),
    *("model", "loss", "train", "folds", "ablations"),
)


MOST_VALUES = 10_000  # of a document
DEEPEST = 50  # groups and lists inside each other
LONGEST_TEXT = 1_000_000  # characters
LONGEST_NUMBER = 4_300  # digits
TOO_LARGE = 10**LONGEST_NUMBER
SHOWN = 200  # characters of what is wrong


class SettingsError(ErcError):
    """A parameter is unknown, of a wrong type, or out of range."""


class Section(BaseModel):
    """Base of every section: frozen, and refusing keys that it does not know and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


SectionType = TypeVar("SectionType", bound=Section)


def _expand_home(path: str) -> str:
    """`path` with the folder that a leading `~` or `~name` stands for; as it is where there is no such user."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        return path


UserPath = Annotated[str, AfterValidator(_expand_home)]


def read_section(
    path: Path | None, name: str, section: type[SectionType], overrides: Sequence[str] = ()
) -> SectionType:
    """Section `name` of the YAML file at `path`, as a checked `section`.

    A dotted `name` such as `evaluate.degrade` is a group inside a section, read alone: the rest of that section is
    another stage's. A section that is absent or empty means its defaults, as does no file (None). `overrides` are
    `section.key=value` strings with YAML values; those of other sections are checked for form and left alone, so
    that one list serves a command that reads several sections.

    Raises:
        SettingsError: the file is missing or not YAML, an override is malformed, or a value is not accepted.
    """
    document = {} if path is None else read_document(path)
    top, *groups = name.split(".")
    content = _group(document, top, f"{path}: section '{top}'")
    for override in overrides:
        keys, value = _parse_override(override, document)
        if keys[0] == top:
            _set_key(content, keys[1:], value, override)
    source = str(path or "defaults")
    for depth, group in enumerate(groups, start=1):
        key = ".".join([top, *groups[:depth]])
        content = _group(content, group, f"{_source_of(key, overrides, source)}: group '{key}'")
    return check_section(content, name, section, source, overrides)


def as_overrides(**sections: Mapping[str, Any] | None) -> list[str]:
    """Dictionaries in the words of params.yaml, as the overrides that `read_section` takes; None stands for none.

    >>> as_overrides(model={"name": "hcam", "dim": 32}, train={"seeds": (0, 1)}, loss=None)
    ['model.name="hcam"', 'model.dim=32', 'train.seeds=[0, 1]']

    Raises:
        SettingsError: a section is no dictionary, or a value is nothing that params.yaml can hold.
    """
    overrides: list[str] = []
    for name, content in sections.items():
        if content is not None and not isinstance(content, Mapping):
            raise SettingsError(f"{name} is {content!r}; expected the keys of section '{name}' in a dictionary")
        for key, value in (content or {}).items():
            if isinstance(value, Mapping):
                overrides += as_overrides(**{f"{name}.{key}": value})
            else:
                overrides.append(f"{name}.{key}={_to_yaml(value, f'{name}.{key}')}")
    return overrides


def _to_yaml(value: Any, key: str) -> str:
    def plain(odd: Any) -> Any:
        if isinstance(odd, os.PathLike):
            return os.fspath(odd)
        if isinstance(odd, range):
            return list(odd)
        if hasattr(odd, "tolist"):  # numbers and arrays of numpy and torch
            return odd.tolist()
        raise SettingsError(f"'{key}' is {value!r}; expected numbers, strings, booleans, None or lists of these")

    return json.dumps(value, ensure_ascii=False, default=plain)


def check_overrides(overrides: Sequence[str], sections: Sequence[str]) -> None:
    """Refuse what a command with these `sections` would never look at; `read_section` refuses what is malformed.

    Raises:
        SettingsError: an override is of another section.
    """
    for override in overrides:
        section = override.partition("=")[0].strip().partition(".")[0]
        if section in SECTION_NAMES and section not in sections:
            raise SettingsError(
                f"--set {override!r}: section '{section}' has no effect on these commands, which take "
                f"{', '.join(sections)}; give it to the command that reads it, or leave it out"
            )


def _group(content: Mapping[str, Any], key: str, what: str) -> dict[str, Any]:
    """The keys and values under `key`; none where it is absent or empty."""
    group = content.get(key)
    if group is None:
        return {}
    if not isinstance(group, dict):
        raise SettingsError(f"{what} must hold keys and values, found {_short(group)}")
    return group


def check_section(
    content: Mapping[str, Any], name: str, section: type[SectionType], source: str, overrides: Sequence[str] = ()
) -> SectionType:
    """`content` as a checked `section`; `source` (a file's name) leads messages, or the one of `overrides` (which are
    in `content` already) that a value comes from. An empty `name` is for keys that stand in no section.

    Raises:
        SettingsError: as `read_section`.
    """
    try:
        # through JSON, where pydantic's strict mode takes a list for a tuple and a string for a path
        return section.model_validate_json(json.dumps(dict(content), default=str))
    except ValidationError as error:
        found = error.errors(include_url=False)
        first = [problem for problem in found if not _follows(problem, found)]
        problems: dict[str, dict[str, None]] = {}  # by source; a dict keeps their order and each once
        for _, alternatives in groupby(first, _location):
            told = list(alternatives)  # of one value that could be of several types, a problem each
            where = _source_of(_key_of(told[0], name), overrides, source)
            problems.setdefault(where, {})[_describe(told, name, section)] = None
        raise SettingsError("; ".join(f"{where}: {'; '.join(told)}" for where, told in problems.items())) from None


def _source_of(key: str, overrides: Sequence[str], source: str) -> str:
    """Where the value at `key` comes from: an override of it or of a group around it, `source`, or both."""
    places = {override: override.partition("=")[0].strip() for override in overrides}
    around = [override for override, place in places.items() if f"{key}.".startswith(f"{place}.")]
    if around:
        return f"override {around[-1]!r}"
    inside = [override for override, place in places.items() if place.startswith(f"{key}.")]
    return " ".join([source, *(f"override {override!r}" for override in inside)])


class _Loader(yaml.SafeLoader):
    """YAML as DVC reads it: `1e-4` is a number (PyYAML alone takes it for a string), a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [str(self.construct_object(key, deep=True)) for key, _ in node.value]
        repeated = sorted(key for key, count in Counter(keys).items() if count > 1)
        if repeated:
            raise yaml.constructor.ConstructorError(None, None, f"key '{repeated[0]}' is given twice", node.start_mark)
        return {
            key if isinstance(key, str) else str(key): value
            for key, value in super().construct_mapping(node, deep).items()
        }

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Without those that Python would read, as they are written to another base, but not write."""
        number: int = super().construct_yaml_int(node)
        if abs(number) >= TOO_LARGE:
            raise ValueError(f"an integer of more than {LONGEST_NUMBER:,} digits")
        return number

    def get_single_node(self) -> yaml.Node | None:
        """The document before anything is made of it, while aliases are still counted in no time."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _spelt_out(node, {}) > MOST_VALUES:
            problem = f"it holds more than {MOST_VALUES:,} values once every alias (*name) is spelt out"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return node


def _spelt_out(node: yaml.Node, known: dict[int, int | None], depth: int = 0) -> int:
    """How many values `node` holds with every alias spelt out; `known` are those met before, None while still open."""
    if depth > DEEPEST:
        raise yaml.YAMLError(f"it is nested more than {DEEPEST} deep")
    if id(node) not in known:
        known[id(node)] = None
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_spelt_out(part, known, depth + 1) for part in inner)
    if (count := known[id(node)]) is None:
        problem = "an alias (*name) stands inside what it names"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return count


def _parse(text: str) -> Any:
    """YAML as values.

    Raises:
        yaml.YAMLError: it is not YAML, or holds a date, number or nesting that cannot be read.
    """
    if len(text) > LONGEST_TEXT:
        raise yaml.YAMLError(f"it has {len(text):,} characters, more than {LONGEST_TEXT:,}")
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError(f"it is nested more than {DEEPEST} deep") from None
    except (
        ValueError,
        TypeError,
        OverflowError,
        AttributeError,
        KeyError,
    ) as error:  # of PyYAML's dates, numbers, tags
        raise yaml.YAMLError(f"a date, number or tag in it cannot be read ({error})") from None


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_document(path: Path) -> dict[str, Any]:
    """The sections of the YAML file at `path`, as they stand there.

    Raises:
        SettingsError: the file is missing or not YAML, or has a section that there is not.
    """
    try:
        refuse_pipe(path)
        document = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"{path}: no such file; run the command where params.yaml lies, or name the file (--params)"
        ) from None
    except (OSError, ValueError) as error:  # not UTF-8, or a path that no file can have
        raise SettingsError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise SettingsError(f"{path}: must hold sections such as 'dataset:', found {type(document).__name__}")
    for section in document:
        if section not in SECTION_NAMES:  # else a misspelt section would silently mean its defaults
            hint = suggest(str(section), SECTION_NAMES) or f"; sections are {', '.join(SECTION_NAMES)}"
            raise SettingsError(f"{path}: no section is called '{section}'{hint}")
    return document


def _parse_override(override: str, document: Mapping[str, Any]) -> tuple[list[str], Any]:
    key, equals, text = override.partition("=")
    keys = key.strip().split(".")
    if not equals or len(keys) < 2 or not all(keys):
        hint = _suggest_section(keys[0], document) if len(keys) == 1 else ""
        raise SettingsError(f"override {override!r}: expected section.key=value, such as train.seeds=[0,1]{hint}")
    if keys[0] not in SECTION_NAMES:
        raise SettingsError(f"override {override!r}: no section '{keys[0]}'{suggest(keys[0], SECTION_NAMES)}")
    try:
        return keys, _parse(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"override {_short(override)}: the value is not valid YAML: {reason}") from None


def _set_key(content: dict[str, Any], keys: Sequence[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        inner = content.get(key)
        if inner is None:
            inner = content[key] = {}
        if not isinstance(inner, dict):
            raise SettingsError(f"override {override!r}: '{key}' is not a group of keys")
        content = inner
    content[keys[-1]] = value


def _is_alternative(part: str | int) -> bool:
    """Whether pydantic put this into a location for one of the types that a key accepts: tuple[..], bool and so on."""
    return isinstance(part, str) and ("[" in part or part == "bool" or part.startswith("constrained-"))


def _location(problem: Any) -> list[str | int]:
    return [part for part in problem["loc"] if not _is_alternative(part)]


def _key_of(problem: Any, name: str) -> str:
    """The dotted key that a problem is of, as params.yaml and --set name it."""
    return ".".join([*filter(None, [name]), *map(str, _location(problem))])


def _follows(problem: Any, problems: Sequence[Any]) -> bool:
    """Whether a problem is that of a whole whose elements have problems of their own."""
    location, others = _location(problem), map(_location, problems)
    return any(len(other) > len(location) and other[: len(location)] == location for other in others)


def _describe(problems: Sequence[Any], name: str, section: type[Section]) -> str:
    """The pydantic problems of one value in the words of params.yaml."""
    problem = problems[0]
    location, key = _location(problem), _key_of(problem, name)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(section, location[:-1])
        hint = suggest(str(location[-1]), known, key.rpartition(".")[0]) or f"; known here: {', '.join(known)}"
        return f"unknown key '{key}'{hint}"
    if problem["type"] == "missing":
        return f"key '{key}' is required"
    message, *others = map(_message, problems)
    message = " or ".join([message, *(other.removeprefix("input should be ") for other in others)])
    found = problem["input"]
    if isinstance(found, dict | BaseModel):  # a rule over several keys: its message names them
        return message if f"'{key}." in message else f"'{key}': {message}"
    hint = ""
    if problem["type"] == "literal_error" and isinstance(found, str):
        accepted = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        close = difflib.get_close_matches(found, accepted)
        hint = suggest(found, accepted) if len(close) == 1 else ""  # of two, the list says as much
    if problem["type"] == "string_type" and isinstance(found, bool | int | float):
        hint = "; put it in quotes"  # YAML takes a bare no for False
    if problem["type"] == "string_type" and found is None:
        hint = "; ~ alone and an empty value are null in YAML: give a value, and write '~' in quotes"
    return f"'{key}' is {_short(found)}: {message}{hint}"


def _short(found: Any) -> str:
    shown = repr(found)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}.. ({len(shown):,} characters)"


def _message(problem: Any) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    message = message.replace("a valid array", "a list").replace("an object", "a group of keys and values")
    message = message.replace(", unable to interpret input", "")  # of a boolean
    return message.replace("tuple", "list").replace(" after validation", "")


def _fields_at(section: type[Section], location: Sequence[str | int]) -> list[str]:
    model: type[BaseModel] = section
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            inner = next(_models_in(model.model_fields[part].annotation), None)
            model = inner or model
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for argument in get_args(annotation):
            yield from _models_in(argument)


def _suggest_section(key: str, document: Mapping[str, Any]) -> str:
    """Where in the file there is such a key."""
    places = [f"'{name}.{key}'" for name, group in document.items() if isinstance(group, dict) and key in group]
    return f"; did you mean {' or '.join(places)}?" if places else ""
