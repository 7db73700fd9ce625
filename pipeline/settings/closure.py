"""Which source files decide what a function computes: those of the definitions that it reaches, by name and import.

`closure("fusion.training.loop:fit")` starts from a function or class and follows every name that its code uses: into
its own module, through imports at the top of a module and inside functions, and through the doors of rooms. So a module
with two functions counts for one of them with what that one needs, and `audio` does not depend on the text encoder.
Annotations count: what is called on an argument is of its class. Those in quotes do not.

DVC's stages depend on the closure of what they run (`scripts/stage_dependencies.py`), and fingerprints of finished work
hash it.
"""

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

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
        waiting += _reached(*place)
    return sorted({_read(module).path for module, _ in seen})


def closure_digest(*entries: str) -> str:
    """Hash (hex) of the contents of the files of `closure`: whoever works on them raises no version with every edit."""
    digest = hashlib.sha256()
    for path in closure(*entries):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _reached(module: str, name: str | None) -> Iterator[tuple[str, str | None]]:
    """What a definition, or with None a module as a whole, uses directly."""
    source = _read(module)
    yield module, ""  # what importing the module runs
    if name == "":
        nodes = source.always
    elif name is None:
        nodes = [node for group in source.definitions.values() for node in group]
        yield from (_resolved(*place) for place in source.imports.values())
    else:
        nodes = source.definitions[name]
    for node in nodes:
        inner = _imports(node, module)
        for used in _names(node):
            if used in inner:
                yield _resolved(*inner[used])
            elif used in source.imports:
                yield _resolved(*source.imports[used])
            elif used in source.definitions and used != name:
                yield module, used


def _resolved(module: str, name: str | None = None) -> tuple[str, str | None]:
    """Where a name is defined: through re-exports and the doors of rooms; None for a module as a whole."""
    if name is not None and _path(f"{module}.{name}"):
        return f"{module}.{name}", None
    source = _read(module)
    if name is None or name in source.definitions:
        return module, name
    if name in source.imports:
        return _resolved(*source.imports[name])
    raise LookupError(f"{module} defines no '{name}'")


@cache
def _read(module: str) -> _Source:
    path = _path(module)
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
def _path(module: str) -> Path | None:
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
