"""The documentation: it builds without a warning, every link leads somewhere, and nothing outside is asked for."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import h5py
import pytest

import pipeline.manifest
from fusion.models import MODELS
from fusion.params import LossParams, ModelParams
from pipeline.datasets import meld, mosi
from pipeline.params import DatasetParams
from tests.fusion.made import write_made

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}
PAGES_OF_THE_SITE_TOO = {"canonical", "prev", "next"}  # links that a browser does not load


class Page(HTMLParser):
    """What an HTML page links to, what it loads, and the places in it that links may name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.links, self.loaded, self.places = path, list[str](), list[str](), set[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.places |= {given["id"]} if "id" in given else set()
        self.links += [given["href"]] if tag == "a" and "href" in given else []
        if LOADED.get(tag) in given and given.get("rel") not in PAGES_OF_THE_SITE_TOO:
            self.loaded.append(given[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """The site as `make docs` builds it, page by page."""
    folder = tmp_path_factory.mktemp("site").resolve()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: Page(path) for path in folder.rglob("*.html")}


def test_every_page_is_on_the_site(site: dict[Path, Page]) -> None:
    assert {page.stem for page in PAGES} <= {path.stem for path in site}


def test_every_link_of_the_site_leads_somewhere(site: dict[Path, Page]) -> None:
    checked = 0
    for path, page in site.items():
        if path.name == "404.html":  # is served from anywhere, so its links begin with /
            continue
        for link in page.links:
            address = urlsplit(link)
            if address.scheme:
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            assert target.exists(), f"{path.name}: {link}"
            if address.fragment and target in site:
                assert unquote(address.fragment) in site[target].places, f"{path.name}: {link}"
            checked += 1
    assert checked > 500


def test_the_site_asks_for_nothing_outside(site: dict[Path, Page]) -> None:
    for path, page in site.items():
        assert not [address for address in page.loaded if urlsplit(address).netloc], path.name
        assert page.loaded
    folder = next(path.parent for path in site if path.name == "index.html")
    for sheet in folder.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


def links_of(text: str) -> Iterator[str]:
    """Targets of Markdown links and images that are no address of the web."""
    prose = re.sub(r"^```.*?^```|^ {4}[^\n]*$|`[^`\n]*`(?!\])", "", text, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not urlsplit(target).scheme:
            yield target


def slug(heading: str) -> str:
    """The place that a heading makes, on the site as on the usual hosts of repositories."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in PAGES)])
def test_every_link_works_in_the_repository_too(name: str) -> None:
    page = ROOT / name
    for target in links_of(page.read_text(encoding="utf-8")):
        path, _, place = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{name}: {target}"
        if place:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert place in map(slug, headings), f"{name}: {target}"


def test_the_readme_leads_to_the_pages() -> None:
    assert len(set(links_of(README))) >= 10


def test_files_that_pages_name_exist() -> None:
    example = ("letters", "gated")  # are to be written by who reads the page
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:pipeline|fusion|scripts|tests|benchmarks|notebooks)/[\w./-]+)`", text):
            assert (ROOT / name).exists() or any(word in name for word in example), f"{page.name}: {name}"


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    made = subprocess.run([sys.executable, "scripts/commands_page.py"], cwd=ROOT, capture_output=True, text=True)
    fix = "python scripts/commands_page.py > docs/commands.md"
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == made.stdout, f"fix it: {fix}"


def test_the_readers_of_feature_files_on_their_page_read_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    features = write_made(tmp_path / "data" / "feats.h5")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "feature-file.md").read_text(encoding="utf-8")
    for reader in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(reader, "feature-file.md", "exec"), {})
    printed = capsys.readouterr().out
    first = features.utterances.ids[0]
    assert printed.splitlines()[1].startswith(f"{first} train ")
    assert f"{first} {features.label_names} {features.digest[:12]}" in printed


def test_the_page_of_the_feature_file_names_all_that_is_in_one(tmp_path: Path) -> None:
    write_made(tmp_path / "feats.h5")
    page = (ROOT / "docs" / "feature-file.md").read_text(encoding="utf-8")
    with h5py.File(tmp_path / "feats.h5") as file:
        named = {*file["utterances"], *file["audio"], *file["audio"].attrs, *file.attrs}
    for name in named:
        name = re.sub("^(audio|text)_", "<part>_", name)
        assert re.search(rf"`(utterances/)?{re.escape(name)}`", page), name


def test_the_page_of_models_names_every_switch() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    own = [key for one in MODELS.values() for key in one.Params.model_fields]
    for key in [*ModelParams.model_fields, *own, *LossParams.model_fields]:
        assert re.search(rf"\b{key}\b", page), key


def test_the_page_of_data_sets_names_every_status_and_the_counts() -> None:
    page = (ROOT / "docs" / "data-sets.md").read_text(encoding="utf-8")
    statuses = re.findall(r"^    ([a-z-]+)(?: \(\.\.\))? {2,}", str(pipeline.manifest.__doc__), flags=re.MULTILINE)
    assert len(statuses) > 20
    assert not [status for status in statuses if f"`{status}" not in page]
    assert not [key for key in DatasetParams.model_fields if not re.search(rf"\b{key}\b", page)]
    for counts in (meld.PUBLISHED, mosi.published("sdk", True)):
        named = [f"{number:,}" for columns in counts.values() for split, number in columns.items() if split != "all"]
        assert named
        assert not [number for number in named if not re.search(rf"\b{number}\b", page)]
