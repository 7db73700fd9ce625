"""The degrade stage: conditions as part files, kept from run to run, of the test split alone."""

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion.evaluation.robustness import read_degraded
from pipeline.degradation import degrade
from pipeline.degradation import stage as module
from pipeline.degradation.stage import Degraded, hear
from pipeline.errors import DataError, StoreError
from pipeline.extraction import extract_audio, extract_text
from pipeline.join import join
from pipeline.manifest import content_key, read_manifest, write_manifest
from pipeline.params import AudioParams, DatasetParams, DegradeParams, TextParams
from pipeline.preparation import prepare
from pipeline.settings.closure import closure
from pipeline.store import Identity, SlotWriter, read_part
from tests.forked import exit_status, fork
from tests.pipeline.made import rows_of, sound, write_corpus, write_wav

WORDS = {"seed": 0, "substitute": 1.0, "delete": 1.0, "insert": 1.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve conversations of four turns; of the test split one turn is silent, one has no recording, one no text."""
    root = tmp_path_factory.mktemp("corpus")
    rows = rows_of(12, 4)
    test = sorted((row for row in rows if row["split"] == "test"), key=lambda row: (row["conversation"], row["turn"]))
    for row in rows:
        row["recognised"] = row["text"].replace("conversation", "conservation")
    for row in test:
        row["text"] = f"only tests say xyzzy{row['turn']} and plugh"
    test[0]["recognised"] = test[0]["text"].upper() + "!"
    write_wav(root / test[1]["audio"], np.zeros((3200, 1)), 16_000)
    test[2]["audio"] = ""
    test[3]["text"] = ""
    write_wav(root / test[4]["audio"], sound(0.7, 22_050), 22_050)
    write_corpus(root, rows)
    prepared = prepare(DatasetParams(name="table", root=str(root), table="table.csv"))
    write_manifest(root / "manifest.jsonl", prepared.utterances)
    return root


LOG_MEL = AudioParams(encoder="log-mel", normalise="clip-band")  # of a clip alone, whatever the others are


def run(
    corpus: Path,
    folder: Path,
    manifest: Path | None = None,
    encoder: str = "log-mel",
    overwrite: bool = False,
    **params: object,
) -> Degraded:
    return degrade(
        manifest or corpus / "manifest.jsonl",
        folder,
        DegradeParams(**params),  # type: ignore[arg-type]
        AudioParams(encoder=encoder, normalise="clip-band" if encoder == "log-mel" else None),
        TextParams(),
        corpus,
        "downmix",
        "cpu",
        overwrite,
    )


def names(conditions: Sequence[module.Condition]) -> list[str]:
    return [condition.name for condition in conditions]


@pytest.fixture(scope="module")
def degraded(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "degraded"
    run(corpus, folder, word_errors=(0.3, 1.0), noise=(20.0, -5.5), recogniser=True)
    return folder


def test_there_is_a_file_for_each_condition_and_nothing_else(degraded: Path) -> None:
    assert sorted(path.name for path in degraded.iterdir()) == [
        "audio-noise--5.5dB.h5",
        "audio-noise-20dB.h5",
        "text-recogniser.h5",
        "text-word-errors-0.3.h5",
        "text-word-errors-1.h5",
    ]


def test_a_condition_holds_the_test_split_alone(corpus: Path, degraded: Path) -> None:
    test = [u.id for u in read_manifest(corpus / "manifest.jsonl") if u.split == "test"]
    for path in degraded.iterdir():
        assert read_part(path).ids == test


def test_the_identity_differs_from_that_of_the_stages_by_the_input_alone(
    corpus: Path, degraded: Path, tmp_path: Path
) -> None:
    manifest = corpus / "manifest.jsonl"
    extract_text(manifest, tmp_path / "text.h5", TextParams(), "cpu")
    extract_audio(manifest, tmp_path / "audio.h5", LOG_MEL, corpus, "downmix", "cpu")
    for path in degraded.iterdir():
        fields = dict(read_part(path).identity.fields)
        given = fields.pop("input")
        assert Identity(fields) == read_part(tmp_path / f"{path.name.split('-')[0]}.h5").identity
        assert given["study"] in path.name
        if given["study"] == "word-errors":
            assert {key: given[key] for key in WORDS} == WORDS
            assert 0 < given["edits"] <= given["words"] == 66
        elif given["study"] == "noise":
            assert (given["kind"], given["seed"], given["silent"]) == ("white", 0, 1)


def test_an_absent_modality_stays_absent_and_deleted_words_make_one(
    corpus: Path, degraded: Path, tmp_path: Path
) -> None:
    noisy, worded = read_part(degraded / "audio-noise-20dB.h5"), read_part(degraded / "text-word-errors-0.3.h5")
    assert [index for index in range(12) if not len(noisy.rows(index))] == [2]
    assert [index for index in range(12) if not len(worded.rows(index))] == [3]
    run(corpus, tmp_path / "d", word_errors=(1.0,), substitute=0.0, insert=0.0)
    gone = read_part(tmp_path / "d" / "text-word-errors-1.h5")
    assert len(gone.ids) == 12
    assert len(gone.values) == 0
    assert gone.identity.fields["input"]["edits"] == gone.identity.fields["input"]["words"]


def test_words_that_come_in_are_those_of_train(corpus: Path) -> None:
    """Both ways: with every word substituted, none of the test split's own is left, and all are train's."""
    utterances = read_manifest(corpus / "manifest.jsonl")
    known = {word for u in utterances if u.split == "train" for word in u.text.split()}
    (hearing,), notes = module.hear(utterances, DegradeParams(word_errors=(1.0,), delete=0, insert=0), corpus)
    words = {word for text in hearing.texts for word in text.split()}
    assert not notes
    assert len(words) > 4
    assert words <= known
    assert hearing.errors.rate == 1.0


def test_what_the_recogniser_wrote_is_encoded_and_measured(corpus: Path, degraded: Path) -> None:
    utterances = read_manifest(corpus / "manifest.jsonl")
    test = [u for u in utterances if u.split == "test"]
    assert test[0].recognised == test[0].text.upper() + "!"
    given = read_part(degraded / "text-recogniser.h5").identity.fields["input"]
    (hearing,), _ = module.hear(utterances, DegradeParams(recogniser=True), corpus)
    assert hearing.texts == [u.recognised for u in test]
    assert len(given.pop("of")) == 32
    assert given == {"study": "recogniser", "edits": hearing.errors.edits, "words": 66}
    assert given["edits"] > 0


def test_without_a_recogniser_s_column_its_study_is_refused_and_lines_stay_as_they_were(tmp_path: Path) -> None:
    root = write_corpus(tmp_path, rows_of(6, 2, audio=False))
    prepared = prepare(DatasetParams(name="table", root=str(root), table="table.csv"))
    write_manifest(root / "manifest.jsonl", prepared.utterances)
    assert "recognised" not in (root / "manifest.jsonl").read_text()
    with pytest.raises(DataError, match=r"no recogniser's words; name their column in dataset\.columns\.recognised"):
        run(root, tmp_path / "degraded", recogniser=True)


def test_noise_reaches_the_clip_at_its_ratio_and_not_the_silent_one(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the encoder's rate, after resampling."""
    measured = {}

    def watched(clip: np.ndarray, ratio: float, seed: int, identifier: str, kind: module.NoiseKind) -> np.ndarray:
        noisy = module_add_noise(clip, ratio, seed, identifier, kind)
        noise = noisy.astype(np.float64) - clip
        measured[identifier] = (len(clip), 10 * np.log10(clip.var() / np.square(noise).mean()) if noise.any() else None)
        return noisy

    module_add_noise = module.add_noise
    monkeypatch.setattr(module, "add_noise", watched)
    result = run(corpus, tmp_path / "degraded", noise=(7.0,))
    test = [u for u in read_manifest(corpus / "manifest.jsonl") if u.split == "test"]
    assert measured[test[1].id] == (3200, None)
    assert measured[test[4].id][0] == round(0.7 * 16_000)
    ratios = [ratio for _, ratio in measured.values() if ratio is not None]
    assert len(ratios) == 10
    assert ratios == pytest.approx([7.0] * 10, abs=0.1)
    assert "audio-noise-7dB.h5: white noise in 10 clips, 1 silent ones left as they are, encoded" in result.summary()


def test_a_clip_with_noise_has_as_many_frames_and_other_ones(corpus: Path, degraded: Path, tmp_path: Path) -> None:
    extract_audio(corpus / "manifest.jsonl", tmp_path / "a.h5", LOG_MEL, corpus, "downmix", "cpu")
    clean = read_part(tmp_path / "a.h5")
    soft, loud = (read_part(degraded / f"audio-noise-{level}dB.h5") for level in ("20", "-5.5"))
    keys = {u.id: content_key(u, "audio") for u in read_manifest(corpus / "manifest.jsonl")}
    for index, name in enumerate(soft.ids):
        before = clean.rows(clean.ids.index(keys[name])).astype(np.float32) if keys[name] else soft.rows(index)
        assert len(before) == len(soft.rows(index)) == len(loud.rows(index))
        if len(before) and index != 1:
            assert np.abs(soft.rows(index) - before).mean() < np.abs(loud.rows(index) - before).mean()
        else:
            np.testing.assert_array_equal(soft.rows(index), before)


# what is kept


def test_a_further_level_is_all_that_a_further_level_costs(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "degraded"
    assert len(run(corpus, folder, word_errors=(0.2, 0.4), noise=(10.0,)).encoded) == 3
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)  # as DVC does before it runs the stage
    more = run(corpus, folder, word_errors=(0.1, 0.2, 0.4), noise=(10.0,))
    assert names(more.encoded) == ["text-word-errors-0.1.h5"]
    assert names(more.kept) == ["text-word-errors-0.2.h5", "text-word-errors-0.4.h5", "audio-noise-10dB.h5"]
    assert before.items() <= {path.name: path.read_bytes() for path in folder.iterdir()}.items()


def test_levels_that_are_no_longer_asked_for_are_gone(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "degraded"
    run(corpus, folder, word_errors=(0.2, 0.4))
    fewer = run(corpus, folder, word_errors=(0.4,))
    assert (names(fewer.encoded), names(fewer.kept)) == ([], ["text-word-errors-0.4.h5"])
    assert [path.name for path in folder.iterdir()] == ["text-word-errors-0.4.h5"]
    assert run(corpus, folder).summary() == f"{folder}: 0 conditions, 0 encoded"
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", ["audio.h5", "notes.txt", "more/a.h5"])
def test_a_folder_of_somebody_else_is_not_replaced(corpus: Path, tmp_path: Path, name: str) -> None:
    run(corpus, tmp_path / "degraded", word_errors=(0.2,))
    path = tmp_path / "degraded" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("other work")
    with pytest.raises(StoreError, match="holds what pipeline-degrade did not write"):
        run(corpus, tmp_path / "degraded", word_errors=(0.2,))
    assert path.read_text() == "other work"


def test_other_input_another_seed_other_code_or_damage_is_encoded_anew(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, name = tmp_path / "degraded", "text-word-errors-0.4.h5"

    def encoded(manifest: Path | None = None, overwrite: bool = True, **params: object) -> bool:
        done = run(corpus, folder, manifest, overwrite=overwrite, word_errors=(0.4,), **params)
        return names(done.encoded) == [name]

    assert encoded(overwrite=False)
    assert not encoded()
    with pytest.raises(
        StoreError, match=f"{name}: holds features of other encoder settings and other input; .* with --overwrite"
    ):
        encoded(overwrite=False, seed=1)
    assert encoded(seed=1)
    assert encoded(seed=0)
    utterances = [
        u.model_copy(update={"text": u.text + " indeed"} if u.split == "test" else {})
        for u in read_manifest(corpus / "manifest.jsonl")
    ]
    write_manifest(tmp_path / "other.jsonl", utterances)
    assert encoded(tmp_path / "other.jsonl")
    assert encoded()
    kept = tmp_path / "degraded.kept" / name
    content = bytearray(kept.read_bytes())
    content[-9] ^= 1  # in the values, or in what the seal covers
    kept.unlink()
    kept.write_bytes(content)
    assert encoded()
    monkeypatch.setattr(module, "closure_digest", lambda *entries: "other")
    assert encoded()


def test_where_links_are_not_possible_files_are_copied(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    run(corpus, tmp_path / "linked", word_errors=(0.4,))
    monkeypatch.setattr(os, "link", refuse)
    run(corpus, tmp_path / "copied", word_errors=(0.4,))
    name = "text-word-errors-0.4.h5"
    assert (tmp_path / "linked" / name).stat().st_nlink == 2
    assert (tmp_path / "copied" / name).stat().st_nlink == 1
    assert (tmp_path / "copied" / name).read_bytes() == (tmp_path / "linked" / name).read_bytes()


def test_studies_that_a_corpus_does_not_allow_are_left_out_with_a_note(corpus: Path, tmp_path: Path) -> None:
    silent = {"audio": None, "samples": 0, "sample_rate": None, "channels": None, "text": "", "status": "no-audio"}
    write_manifest(
        tmp_path / "m.jsonl", [u.model_copy(update=silent) for u in read_manifest(corpus / "manifest.jsonl")]
    )
    result = run(corpus, tmp_path / "degraded", tmp_path / "m.jsonl", word_errors=(0.1,), noise=(0.0,))
    assert not [*result.encoded, *result.kept]
    assert "note: no study of word errors" in result.summary()
    assert "note: no study of noise: the test split has no recordings" in result.summary()


def test_texts_without_blanks_between_words_are_noted(corpus: Path) -> None:
    manifest = corpus / "manifest.jsonl"
    written = [u.model_copy(update={"text": f"我不知道{u.turn}"}) for u in read_manifest(manifest)]
    notes = hear(written, DegradeParams(word_errors=(0.1,)), manifest)[1]
    assert notes
    assert all(note.startswith("the texts have no blanks between words") for note in notes)
    assert not hear(read_manifest(manifest), DegradeParams(word_errors=(0.1,)), manifest)[1]


@pytest.mark.soak
def test_killed_and_run_again_it_ends_with_the_same_bytes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL after the first batch of the second condition: the first is kept, the second goes on."""
    batches: list[int] = []
    write = SlotWriter.write

    def degraded(name: str) -> Degraded:
        params, audio = DegradeParams(noise=(20.0, 10.0)), AudioParams(encoder="log-mel", batch=0.5)
        return degrade(
            corpus / "manifest.jsonl", tmp_path / name, params, audio, TextParams(), corpus, "downmix", "cpu"
        )

    def counted(writer: SlotWriter, indices: Sequence[int], rows: Sequence[np.ndarray]) -> None:
        write(writer, indices, rows)
        batches.extend(indices)

    def killing() -> None:
        def write_and_die(writer: SlotWriter, indices: Sequence[int], rows: Sequence[np.ndarray]) -> None:
            write(writer, indices, rows)
            if "10dB" in writer.target.name and indices and writer.layout.rows[indices[0]]:
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(SlotWriter, "write", write_and_die)
        degraded("killed")

    torch.set_num_threads(1)  # no thread pool that a fork would lose
    degraded("whole")
    assert exit_status(fork(killing)) == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    monkeypatch.setattr(SlotWriter, "write", counted)
    told = degraded("killed").summary()
    assert "audio-noise-20dB.h5: white noise in 10 clips, 1 silent ones left as they are, kept" in told
    assert "audio-noise-10dB.h5: white noise in 10 clips, 1 silent ones left as they are, encoded" in told
    assert len(batches) < 12  # some of the second condition's utterances were there
    for name in ("audio-noise-20dB.h5", "audio-noise-10dB.h5"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_code_that_decides_a_condition_is_that_of_degrading_and_encoding() -> None:
    names = {f"{path.parent.name}/{path.name}" for path in closure(module.CODE)}
    assert {"degradation/distortions.py", "extraction/engine.py", "encoders/text.py"} <= names


def test_recordings_that_were_exchanged_are_degraded_anew(tmp_path: Path) -> None:
    def prepared(seed: int) -> Path:
        for number, row in enumerate(rows_of(6, 2)):
            write_wav(tmp_path / row["audio"], sound(0.2, 16_000, seed=seed + number), 16_000)
        root = write_corpus(tmp_path, rows_of(6, 2))
        write_manifest(
            root / "manifest.jsonl", prepare(DatasetParams(name="table", root=str(root), table="table.csv")).utterances
        )
        return root

    def of(root: Path) -> object:
        given = read_part(tmp_path / "degraded" / "audio-noise-10dB.h5").identity.fields["input"]
        assert isinstance(given, dict)
        return given["of"]

    assert names(run(prepared(0), tmp_path / "degraded", noise=(10.0,)).encoded) == ["audio-noise-10dB.h5"]
    before = of(tmp_path)
    assert run(prepared(0), tmp_path / "degraded", noise=(10.0,)).encoded == []
    again = run(prepared(100), tmp_path / "degraded", noise=(10.0,), overwrite=True)  # as long, and other sound
    assert names(again.encoded) == ["audio-noise-10dB.h5"]
    assert of(tmp_path) != before


@pytest.mark.parametrize("copy", [False, True])
def test_conditions_are_those_of_the_features_that_were_made_from_the_same_corpus(
    corpus: Path, degraded: Path, tmp_path: Path, copy: bool
) -> None:
    manifest = corpus / "manifest.jsonl"
    extract_text(manifest, tmp_path / "text.h5", TextParams(), "cpu")
    extract_audio(manifest, tmp_path / "audio.h5", LOG_MEL, corpus, "downmix", "cpu")
    features = join(manifest, tmp_path / "audio.h5", tmp_path / "text.h5", tmp_path / "feats.h5", copy)
    assert read_degraded(degraded, features).keys() == {path.name for path in degraded.iterdir()}
    again = join(manifest, *[tmp_path / "feats.h5"] * 2, tmp_path / "again.h5", True) if copy else features
    assert len(read_degraded(degraded, again)) == 5
