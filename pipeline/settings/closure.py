"""Which source files decide what a function computes: those of the definitions that it reaches, by name and import.

`closure("fusion.training.loop:fit")` starts from a function or class and follows every name that its code uses: into
its own module, through imports at the top of a module and inside functions, and through the doors of rooms. So a module
with two functions counts for one of them with what that one needs, and `audio` does not depend on the text encoder.
Annotations count: what is called on an argument is of its class. Those in quotes do not.

DVC's stages depend on the closure of what they run (`scripts/stage_dependencies.py`), and fingerprints of finished work
hash it.

And code of a user's own: models and corpora that plug in by `my_package.module:name`, or by the plain name that an
installed package gives one as an entry point. Whoever names a place in params.yaml or on the command line wants it
imported. A name that stands in a file of somebody else's is not followed, unless an installed package offers it or the
module has been imported already.
"""

import ast
import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from itertools import dropwhile
from pathlib import Path
from traceback import extract_tb
from typing import Any

from pipeline.settings.sections import SettingsError

PACKAGES = ("pipeline", "fusion")
ROOT = Path(__file__).parents[2]  # both lie beside each other


@dataclass(frozen=True)
class _Source:
    """A module of the project: its top-level definitions by name, and what importing it runs besides."""

    path: Path
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # name -> module, and the name in it
    always: list[ast.stmt] = field(default_factory=list)


def closure(*entries: str) -> list[Path]:
    """The files that decide what `module:name` entries compute, sorted.

    Raises:
        LookupError: there is no such module, or no such name in it.
    """
    waiting = [_resolved(*entry.split(":")) for entry in entries]
    seen: set[tuple[str, str | None]] = set()
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        waiting += reached(*place)
    return sorted({read_source(module).path for module, _ in seen})


def closure_digest(*entries: str) -> str:
    """Hash (hex) of the contents of the files of `closure`: whoever works on them raises no version with every edit."""
    digest = hashlib.sha256()
    for path in closure(*entries):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def reached(module: str, name: str | None) -> frozenset[tuple[str, str | None]]:
    """What a definition, or with None a module as a whole, uses directly; found once a process."""
    source = read_source(module)
    found: set[tuple[str, str | None]] = {(module, "")}  # what importing the module runs
    if name == "":
        nodes = source.always
    elif name is None:
        nodes = [node for group in source.definitions.values() for node in group]
        found.update(_resolved(*place) for place in source.imports.values())
    else:
        nodes = source.definitions[name]
    for node in nodes:
        inner = _imports(node, module)
        for used in _names(node):
            if used in inner:
                found.add(_resolved(*inner[used]))
            elif used in source.imports:
                found.add(_resolved(*source.imports[used]))
            elif used in source.definitions and used != name:
                found.add((module, used))
    return frozenset(found)


def _resolved(module: str, name: str | None = None) -> tuple[str, str | None]:
    """Where a name is defined: through re-exports and the doors of rooms; None for a module as a whole."""
    if name is not None and find_source(f"{module}.{name}"):
        return f"{module}.{name}", None
    source = read_source(module)
    if name is None or name in source.definitions:
        return module, name
    if name in source.imports:
        return _resolved(*source.imports[name])
    raise LookupError(f"{module} defines no '{name}'")


@cache
def read_source(module: str) -> _Source:
    """What a module imports and holds; read once a process."""
    path = find_source(module)
    if path is None:
        raise LookupError(f"there is no module '{module}'")
    source = _Source(path)
    for node in ast.parse(source.path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Import() | ast.ImportFrom():
                source.imports.update(_imports(node, module))
            case ast.If() if "TYPE_CHECKING" in ast.unparse(node.test):
                # the names that a door offers; elsewhere, of annotations alone
                for part in node.body:
                    source.imports.update(_imports(part, module))
            case ast.FunctionDef() | ast.ClassDef():
                source.definitions.setdefault(node.name, []).append(node)
            case ast.Assign() | ast.AnnAssign() if targets := _targets(node):
                for name in targets:
                    source.definitions.setdefault(name, []).append(node)
            case _:
                source.always.append(node)
    return source


@cache
def find_source(module: str) -> Path | None:
    """Where a module of the project lies; nothing is imported."""
    place = ROOT.joinpath(*module.split("."))
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)


def _targets(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)]


def _imports(node: ast.AST, module: str) -> dict[str, tuple[str, str | None]]:
    """Names that imports within `node` bind, of this project alone."""
    found: dict[str, tuple[str, str | None]] = {}
    for part in ast.walk(node):
        if isinstance(part, ast.ImportFrom) and part.module and part.module.split(".")[0] in PACKAGES:
            found.update({alias.asname or alias.name: (part.module, alias.name) for alias in part.names})
        elif isinstance(part, ast.Import):
            own = [alias for alias in part.names if alias.name.split(".")[0] in PACKAGES and alias.asname]
            found.update({str(alias.asname): (alias.name, None) for alias in own})
    return found


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


_NAME = r"[^\W\d]\w*"
PLACE = re.compile(rf"{_NAME}(\.{_NAME})*:{_NAME}")  # module:name, package.module:name
MODULE = re.compile(rf"{_NAME}(\.{_NAME})+")  # package.module


def installed_plugins(group: str) -> dict[str, str]:
    """The places that installed packages offer as entry points of `group`, by name."""
    return {plugin.name: plugin.value for plugin in entry_points(group=group)}


def check_plugin_name(name: str, group: str, kind: str, *places: re.Pattern[str]) -> str:
    """`name` if it is that of an installed plug-in or has the form of one of `places`; nothing is imported for it.

    Raises:
        ValueError: it is neither; `kind` says what is expected there.
    """
    if not any(place.fullmatch(name) for place in places):
        installed = installed_plugins(group)
        if name not in installed:
            also = f"{', '.join(sorted(installed))} (installed) or " if installed else ""
            raise ValueError(f"input should be {also}{kind}")
    return name


def is_trusted(name: str, group: str) -> bool:
    """Whether an installed package offers the plug-in called `name`, or its module has been imported already."""
    installed = installed_plugins(group)
    return name in {*installed, *installed.values()} or name.partition(":")[0] in sys.modules


def load_plugin(
    key: str, name: str, group: str, noun: str, fits: Callable[[Any], bool], default: str = "", base: str = ""
) -> Any:
    """What lies where the plug-in `name` says. Its module is also found in the current folder, as `python -m` would.

    Args:
        key: of params.yaml, for messages.
        noun: what is looked for: a function, a class.
        fits: whether something is what is looked for.
        default: the name in the module where `name` has none.
        base: the class that a class which fits is derived from, for messages.

    Raises:
        SettingsError: there is no such module, or nothing in it that fits, or it ends the process. An error inside the
            module is its own.
    """
    installed = installed_plugins(group)
    module, _, wanted = installed.get(name, name).partition(":")
    wanted, folder = wanted or default, str(Path.cwd())
    if name not in {*installed, *installed.values()} and folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks something itself
        raise SettingsError(
            f"{key} '{name}': there is no module '{error.name}' in {folder}, and none is installed; go to the "
            "folder that holds it, or install it"
        ) from None
    except SystemExit as error:
        raise SettingsError(
            f"{key} '{name}': {_place_in_plugin(error)}: the module ends the process (exit status {error.code}) as it "
            'is imported; put what is for its own command under if __name__ == "__main__":'
        ) from error
    value = getattr(found, wanted, None)
    if not fits(value):
        own = [name for name, one in vars(found).items() if name[0] != "_" and _is_own(one, module) and fits(one)]
        other = base and isinstance(value, type)
        problem = f"a class '{wanted}', which is not derived from {base}" if other else f"no {noun} '{wanted}'"
        raise SettingsError(
            f"{key} '{name}': {found.__file__ or module} has {problem}; it has {', '.join(own) or 'none'}. "
            f"{'Derive it, or name' if other else 'Name'} another one with {module}:<{noun}>"
        )
    return value


def _place_in_plugin(error: BaseException) -> str:
    """File and line of the first frame behind Python's own import."""
    frames = dropwhile(lambda frame: not frame.filename.startswith("<frozen "), extract_tb(error.__traceback__))
    frame = next(dropwhile(lambda frame: frame.filename.startswith("<frozen "), frames))
    return f"{frame.filename}, line {frame.lineno}"


def _is_own(value: Any, module: str) -> bool:
    return getattr(value, "__module__", None) == module


def plugin_digest(module: str) -> str:
    """Hash (hex) of the source files of an imported plug-in: its whole package, or its file; and, unless it is
    installed, those of what it imports from beside it.
    """
    digest = hashlib.sha256()
    for name, path in _plugin_sources(module).items():
        digest.update(f"{name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _plugin_sources(module: str) -> Mapping[str, Path]:
    """By their path from the folder that is on the search path."""
    top = module.partition(".")[0]
    file = Path(str(sys.modules[module].__file__)).absolute()
    folder = file.parents[module.count(".") + (file.name == "__init__.py")]
    installed = "site-packages" in folder.parts
    found: dict[str, Path] = {}
    waiting = [top]
    while waiting:
        name = waiting.pop()
        place = folder / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
            if path.is_file() and path.relative_to(folder).as_posix() not in found:
                found[path.relative_to(folder).as_posix()] = path
                waiting += [] if installed else _imported(path)
    return dict(sorted(found.items()))


def _imported(path: Path) -> Iterator[str]:
    """Packages and modules that a file imports from the search path, but those of this project."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [str(node.module)]
        yield from {name.partition(".")[0] for name in names} - {*PACKAGES}
