"""The links that DVC looks at: to the corpus, and to encoders that are folders of the user's."""

import contextlib
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.params import DatasetParams
from pipeline.preparation import link_corpus, link_encoders


def test_the_link_to_the_corpus_is_made_anew_and_moves_with_the_project(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in ("project/data", "project/corpus", "other"):
        (tmp_path / name).mkdir(parents=True)
    with contextlib.chdir(project):
        for root in (str(tmp_path / "other"), "corpus"):
            assert link_corpus(DatasetParams(root=root), Path("data/.corpus")) == f"data/.corpus: a link to {root}"
            assert Path("data/.corpus").samefile(root)
    project = project.rename(tmp_path / "moved")
    assert (project / "data" / ".corpus").samefile(project / "corpus")


@pytest.mark.parametrize(
    ("root", "there", "message"),
    [
        (
            "none",
            "",
            r"dataset.root 'none' does not exist in /.* \(runs of dvc exp --temp and --queue .* an absolute path\)",
        ),
        ("/no/such/folder", "", "dataset.root '/no/such/folder' does not exist; name the folder of the corpus"),
        ("data", "", r"'data' holds what dvc.yaml writes \(data\); .* outside the project, where Git does not see it"),
        (".", "", "'.' holds what dvc.yaml writes"),
        ("corpus", "data/.corpus", "data/.corpus: not a link, and in the way"),
    ],
)
def test_no_link_to_what_cannot_be_a_corpus_of_dvc(tmp_path: Path, root: str, there: str, message: str) -> None:
    for name in ("data", "corpus"):
        (tmp_path / name).mkdir()
    if there:
        (tmp_path / there).write_text("mine")
    with contextlib.chdir(tmp_path), pytest.raises(DataError, match=message):
        link_corpus(DatasetParams(root=root), Path("data/.corpus"))
    assert not there or (tmp_path / there).read_text() == "mine"


def test_where_no_link_can_be_made_the_way_without_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no link can be made here .*; move the project to .*, or write dataset.root"):
        link_corpus(DatasetParams(root=str(tmp_path)), Path("/proc/.corpus"))  # a file system without


def test_a_local_encoder_has_a_link_that_moves_with_the_project_and_a_hub_name_a_file_that_never_changes(
    tmp_path: Path,
) -> None:
    project, links = tmp_path / "project", Path("data/.encoders")
    for name in ("project/data", "project/mine", "other"):
        (tmp_path / name).mkdir(parents=True)
    with contextlib.chdir(project):
        link_encoders({"audio.encoder": "facebook/wav2vec2-base", "text.encoder": "tiny"}, links)
        before = (links / "text.encoder").read_text()
        assert (links / "audio.encoder").read_text() == before
        assert Path("data/.encoders.txt").read_text() == ""
        told = link_encoders({"audio.encoder": str(tmp_path / "other"), "text.encoder": "mine"}, links)
        assert told.splitlines()[1] == "data/.encoders/text.encoder: a link to mine"
        assert Path("data/.encoders.txt").read_text() == f"{told}\n"
    project = project.rename(tmp_path / "moved")
    assert (project / links / "audio.encoder").samefile(tmp_path / "other")
    assert (project / links / "text.encoder").samefile(project / "mine")
    with contextlib.chdir(project):
        link_encoders({"audio.encoder": "tiny", "text.encoder": "bert-base-uncased"}, links)
        assert (links / "text.encoder").read_text() == before
        assert Path("mine").is_dir()


def test_an_encoder_that_a_stage_writes_has_no_link_whether_it_is_there_yet_or_not(tmp_path: Path) -> None:
    """Else the first run would know another dependency than the second."""
    with contextlib.chdir(tmp_path):
        for _ in range(2):
            assert link_encoders({"audio.encoder": "models/encoders/audio"}, Path("data/.encoders")) == ""
            assert Path("data/.encoders/audio.encoder").is_file()
            Path("models/encoders/audio").mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_nothing_of_the_users_is_replaced_by_links_to_encoders(tmp_path: Path, kind: str) -> None:
    mine, links = tmp_path / "mine", tmp_path / "data" / ".encoders"
    (mine / "wavlm").mkdir(parents=True)
    (mine / "wavlm" / "weights").write_text("mine")
    links.parent.mkdir()
    if kind == "file":
        links.write_text("mine")
    elif kind == "link":
        links.symlink_to(mine)
    else:
        mine = mine.rename(links)
    with pytest.raises(DataError, match=r"encoders: not made by this command, and in the way .*; move it elsewhere"):
        link_encoders({"audio.encoder": str(mine / "wavlm")}, links)
    assert (mine / "wavlm" / "weights").read_text() == "mine"
    assert kind != "file" or links.read_text() == "mine"
