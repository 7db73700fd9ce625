"""The packages that the check needs: which are missing here, and how they come from a folder of wheels.

Nothing of the machine's own Python is changed: wheels are unpacked into a folder of the run's own, which goes in front
of the path. What is there already, in a version that will do, is not installed.
"""

import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
WHEELS = Path(__file__).with_name("wheels.txt")
PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17)))


def needed() -> list[Requirement]:
    """What `wheels.txt` lists."""
    lines = [line.partition("#")[0].strip() for line in WHEELS.read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line]


def missing() -> list[Requirement]:
    """Of these, what is not here, or in another version."""
    return [requirement for requirement in needed() if not _is_here(requirement)]


def _is_here(requirement: Requirement) -> bool:
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(found, prereleases=True)


def install(wheels: Path, site: Path) -> None:
    """Unpack what is missing from the folder `wheels` into `site`; exits with a line where it is not there."""
    site.mkdir(parents=True, exist_ok=True)
    _state_own_version(site)
    wanted = [str(requirement) for requirement in missing()]
    if not wanted:
        return
    if not wheels.is_dir():
        sys.exit(f"missing here: {' '.join(wanted)}; make a folder of wheels with --prepare, and name it with --kit")
    own = ["--no-index", "--no-deps", "--no-cache-dir", "--find-links", str(wheels), "--target", str(site)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *own, *wanted]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"{wheels}: lacks some of {' '.join(wanted)}; make it anew with --prepare")


def _state_own_version(site: Path) -> None:
    """Let this project's version be found where it is not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    try:
        importlib.metadata.version(project["name"])
    except importlib.metadata.PackageNotFoundError:
        folder = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        folder.mkdir(exist_ok=True)
        content = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        (folder / "METADATA").write_text(content, encoding="utf-8")


def download(folder: Path, names: Sequence[str], python: str) -> None:
    """Fetch the wheels of `wheels.txt`, or of some of its `names`, for that version of Python on Linux.

    They come in the versions that are installed here, which are known to work together.
    """
    wanted = [
        f"{one.name}=={importlib.metadata.version(one.name)}" for one in needed() if not names or one.name in names
    ]
    platforms = [option for name in PLATFORMS for option in ("--platform", name)]
    target = ["--python-version", python, "--implementation", "cp", *platforms]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *target]
    subprocess.run([*command, "--dest", str(folder), *wanted], check=True)


if __name__ == "__main__":
    install(Path(sys.argv[1]), Path(sys.argv[2]))
