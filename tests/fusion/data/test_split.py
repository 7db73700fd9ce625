"""Splits on the device and batches of whole conversations, against a plain loop over utterances."""

import os
import resource
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fusion.data.rows
import fusion.data.split
from fusion.data import FeatureDataset, Ragged, Resident, Split, hold, load_split, pool, report_features
from fusion.data.batches import Grouping
from fusion.data.rows import Mapped, resident_bytes
from fusion.errors import FeatureError
from pipeline.errors import StoreError
from pipeline.store import Features, Part, read_features
from tests.forked import exit_status, fork
from tests.fusion.batches import tensors_in
from tests.fusion.made import Made, garble_test_split, make_features, tiny_recipe, write_made


def load(features: Features, name: str = "train", **options: Any) -> Split:
    return load_split(features, name, **({"modalities": "both", "audio_frames": 1000} | options))


def assert_same_batches(one: Split, other: Split) -> None:
    for found, expected in zip(one.batches(3), other.batches(3), strict=True):
        torch.testing.assert_close(tensors_in(found), tensors_in(expected), rtol=0, atol=0, equal_nan=True)


def padded_slowly(arrays: list[np.ndarray], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, arrays))
    padded = torch.zeros(len(arrays), longest, *shape)
    mask = torch.zeros(len(arrays), longest, dtype=torch.bool)
    for index, array in enumerate(arrays):
        padded[index, : len(array)] = torch.from_numpy(array.astype(np.float32))
        mask[index, : len(array)] = True
    return padded, mask


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 1000),
    st.sampled_from([(1, 1), (3, 1), (2, 2)]),
    st.permutations(range(5)),
    st.booleans(),
    st.sampled_from([1, 20, 1000]),
)
def test_a_batch_is_what_a_loop_over_utterances_makes(
    seed: int, layers: tuple[int, int], conversations: list[int], resident: bool, group_rows: int
) -> None:
    features = make_features(Made(seed=seed, layers=layers, conversations=(5, 5, 2)))
    split = load(features, "validation", resident=resident)
    chosen = conversations[:3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fusion.data.split.GROUPING, "cpu", Grouping(group_rows, group_rows // 2))
        batch = split.gather(torch.tensor(chosen))

    names = sorted(set(split.conversation_ids))
    table = features.utterances
    indices = [row for one in chosen for row, name in enumerate(table.conversations) if name == names[one]]
    assert features.audio is not None
    assert features.text is not None
    audio, audio_mask = padded_slowly([features.audio.rows(row) for row in indices], features.audio.values.shape[1:])
    text, text_mask = padded_slowly([features.text.rows(row) for row in indices], features.text.values.shape[1:])
    assert batch.labels.tolist() == table.labels[indices].tolist()
    assert batch.turns.mask.sum(1).tolist() == [table.conversations.count(names[one]) for one in chosen]
    found = tensors_in(batch)
    for name, expected in {"audio": audio, "audio_mask": audio_mask, "text": text, "text_mask": text_mask}.items():
        assert torch.equal(found[name], expected), name


@pytest.mark.parametrize("people", [0, 1, 2])
def test_a_model_that_looks_at_who_speaks_says_so_where_nobody_else_does(
    people: int, caplog: pytest.LogCaptureFixture
) -> None:
    train = load(make_features(Made(people=people)))
    report_features(train, [tiny_recipe({"name": name}) for name in ("concat", "dialoguegcn", "dialoguernn")])
    warned = [name for name in ("concat", "dialoguegcn", "dialoguernn") if f"model {name} looks at who" in caplog.text]
    assert warned == ([] if people == 2 else ["dialoguegcn", "dialoguernn"])


def test_speakers_are_numbered_in_each_conversation_as_they_come() -> None:
    features = make_features(Made(conversations=(4, 2, 2), turns=(4, 6), people=3))
    batch = load(features).gather(torch.tensor([2, 0]))
    table = features.utterances
    for row, conversation in enumerate([2, 0]):
        name = list(dict.fromkeys(table.conversations))[conversation]
        names = [who for who, one in zip(table.speakers, table.conversations, strict=True) if one == name]
        known = list(dict.fromkeys(names))
        turns = batch.turns.to_grid(batch.turns.speakers)[row, : len(names)]
        assert turns.tolist() == [known.index(who) for who in names]
        same = batch.turns.same_speaker[row, : len(names), : len(names)]
        assert same.tolist() == [[one == other for other in names] for one in names]


@pytest.mark.parametrize("audio_frames", [3, 1000])
def test_rows_that_stay_in_the_file_give_the_same_bits(audio_frames: int) -> None:
    features = make_features(Made(frames=(0, 20), tokens=(0, 20)))
    mapped = load(features, audio_frames=audio_frames, resident=False)
    assert isinstance(mapped.audio, Mapped)
    assert_same_batches(mapped, load(features, audio_frames=audio_frames))
    missing = torch.arange(len(mapped.ids)) % 2 == 0
    resident = load(features, audio_frames=audio_frames)
    without = [replace(split, audio=split.audio.without(missing)) for split in (mapped, resident)]
    assert_same_batches(*without)


def test_splits_are_held_together_or_not_at_all(caplog: pytest.LogCaptureFixture) -> None:
    features = make_features(Made(frames=(0, 20)))
    splits = [load(features, name, resident=False, audio_frames=4) for name in ("train", "validation")]
    needed = resident_bytes([rows for one in splits for rows in (one.audio, one.text) if isinstance(rows, Mapped)])
    held = hold(splits, needed)
    assert all(isinstance(rows, Resident) for one in held for rows in (one.audio, one.text))
    assert needed == sum(rows.values.nbytes for one in held for rows in (one.audio, one.text))  # type: ignore[union-attr]
    assert not caplog.records
    assert hold(splits, needed - 1) == splits
    assert "more than train.memory leaves them" in caplog.text


@pytest.mark.soak
def test_a_file_four_times_the_budget_is_read_under_a_hard_limit_that_it_exceeds(tmp_path: Path) -> None:
    # 184 MB: more than what earlier tests freed and the process still holds
    made = Made(conversations=(20, 1, 1), turns=(10, 10), frames=(600, 600), tokens=(1, 1), audio_dim=768)
    features = write_made(tmp_path / "feats.h5", made)
    assert features.audio
    size, status = features.audio.size, Path("/proc/self/status")

    def read(resident: bool) -> None:
        taken = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (taken * 1024 + size // 2, -1))
        try:
            split = load(features, resident=resident)
        except (MemoryError, RuntimeError):
            os._exit(7)
        assert sum(int(batch.labels.numel()) for batch in hold([split], size // 4)[0].batches(1)) == 200

    assert exit_status(fork(lambda: read(True))) == 7
    assert exit_status(fork(lambda: read(False))) == 0


def test_an_epoch_has_every_conversation_once_in_an_order_that_the_generator_decides() -> None:
    split = load(make_features(Made(conversations=(11, 1, 1), turns=(1, 1))))
    split = replace(split, labels=torch.arange(11))

    def order(seed: int) -> list[int]:
        batches = split.batches(4, torch.Generator().manual_seed(seed))
        return [label for batch in batches for label in batch.labels.tolist()]

    assert sorted(order(0)) == list(range(11))
    assert order(0) == order(0)
    assert order(0) != order(1)
    assert [batch.labels.tolist() for batch in split.batches(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_features_keep_their_precision_on_the_device_and_are_float32_in_a_batch() -> None:
    split = load(make_features(Made(dtype=np.float16)))
    assert isinstance(split.audio, Resident)
    assert split.audio.values.dtype == torch.float16
    assert split.gather(torch.tensor([0])).groups[0].audio.dtype == torch.float32


def pooled_slowly(array: np.ndarray, limit: int) -> np.ndarray:
    if len(array) <= limit:
        return array
    bounds = [len(array) * segment // limit for segment in range(limit + 1)]
    means = [array[first:last].astype(np.float32).mean(0) for first, last in pairwise(bounds)]
    return np.array(means).astype(array.dtype)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 12), st.integers(0, 99), st.booleans())
def test_pooling_takes_the_mean_of_segments_of_near_equal_length(
    lengths: list[int], limit: int, seed: int, layered: bool
) -> None:
    random = np.random.default_rng(seed)
    arrays = [random.normal(size=(length, 2, 3) if layered else (length, 3)).astype(np.float32) for length in lengths]
    pooled = pool(np.concatenate(arrays), torch.tensor(lengths), limit)
    expected = [pooled_slowly(array, limit) for array in arrays]
    assert pooled.lengths.tolist() == [len(array) for array in expected]
    torch.testing.assert_close(pooled.values, torch.from_numpy(np.concatenate(expected)), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 60), st.integers(1, 12))
def test_pooling_cuts_nothing_and_spreads_evenly(length: int, limit: int) -> None:
    pooled = pool(np.eye(length, dtype=np.float32), torch.tensor([length]), limit).values
    rows_per_segment = (pooled > 0).sum(1)
    assert torch.equal((pooled > 0).sum(0), torch.ones(length, dtype=torch.int64))
    assert int(rows_per_segment.max() - rows_per_segment.min()) <= 1


def test_pooling_does_not_touch_utterances_within_the_limit() -> None:
    values = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float16)
    pooled = pool(values, torch.tensor([4, 22, 4]), 4)
    np.testing.assert_array_equal(pooled.values[:4].numpy(), values[:4])
    np.testing.assert_array_equal(pooled.values[-4:].numpy(), values[-4:])


def test_pooled_frames_are_rounded_to_the_type_in_which_features_are_stored() -> None:
    """As docs/sharing.md says, for those who make the input of `model.onnx`."""
    values = np.random.default_rng(0).normal(size=(22, 4)).astype(np.float16)
    pooled = pool(values, torch.tensor([22]), 4).values
    assert pooled.dtype == torch.float16
    torch.testing.assert_close(pooled, torch.from_numpy(pooled_slowly(values, 4)), rtol=2**-10, atol=2**-24)


def test_pooling_piece_by_piece_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float16)
    lengths = torch.tensor([20, 0, 3, 27])
    whole = pool(values, lengths, 7)
    monkeypatch.setattr(fusion.data.rows, "POOLED_ROWS", 3)
    assert torch.equal(pool(values, lengths, 7).values, whole.values)


def test_longer_audio_is_pooled_when_loaded_and_text_is_not() -> None:
    features = make_features(Made(frames=(0, 20), tokens=(0, 20)))
    split = load(features, audio_frames=4)
    assert int(split.audio.lengths.max()) == 4
    assert int(split.text.lengths.max()) > 4


@pytest.mark.parametrize(("withheld", "kept"), [("audio", "text"), ("text", "audio")])
def test_a_withheld_modality_is_empty_and_keeps_its_shape(withheld: str, kept: str) -> None:
    features = make_features(Made(layers=(3, 2)))
    split = load(features, modalities=kept)
    ragged: Ragged = getattr(split, withheld)
    part = getattr(features, withheld)
    assert (ragged.dim, ragged.layers) == (part.values.shape[2], part.values.shape[1])
    batch = split.gather(torch.arange(3))
    assert tensors_in(batch)[withheld].shape[1] == 0
    assert not getattr(batch, f"{withheld}_present").any()
    assert getattr(batch, f"{kept}_present").any()


def test_a_modality_that_the_file_lacks_can_only_be_withheld() -> None:
    features = replace(make_features(), text=None)
    split = load(features, modalities="audio")
    assert (split.text.dim, split.text.layers, int(split.text.lengths.sum())) == (1, 1, 0)
    with pytest.raises(FeatureError, match=r"made\.h5: holds no text, .*set model\.modalities to 'audio'"):
        load(features)


def test_a_split_without_utterances_is_refused() -> None:
    with pytest.raises(FeatureError, match=r"made\.h5: no utterance is in the validation split"):
        load(make_features(Made(conversations=(3, 0, 3))), "validation")


def test_a_split_without_labels_is_refused() -> None:
    with pytest.raises(FeatureError, match="no utterance of the test split has a label"):
        load(make_features(Made(unlabelled=1.1)), "test")


def test_train_and_validation_do_not_depend_on_the_test_split() -> None:
    features = make_features()
    for name in ("train", "validation"):
        one, other = load(features, name), load(garble_test_split(features), name)
        assert_same_batches(one, other)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("modality", ["audio", "text"])
def test_damaged_rows_stop_a_split_before_they_are_used(tmp_path: Path, modality: str, resident: bool) -> None:
    part: Part = getattr(write_made(tmp_path / "feats.h5"), modality)
    damaged = next(index for index, rows in enumerate(part.offsets[1:]) if rows)
    content = bytearray(part.path.read_bytes())
    content[int(part.values.base.offset)] ^= 1  # type: ignore[attr-defined]
    part.path.write_bytes(content)
    features = read_features(part.path)
    told = f"1 of .* utterances do not match their checksum: '{part.ids[damaged]}'; "
    with pytest.raises(StoreError, match=told):
        list(load(features, resident=resident).batches(3))
    with pytest.raises(StoreError, match=told):
        FeatureDataset(features)[damaged]
    list(load(features, "validation", resident=resident).batches(3))
    other = "text" if modality == "audio" else "audio"
    list(load(features, modalities=other, resident=resident).batches(3))


def test_a_dataset_of_a_split_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(FeatureError, match=r"no utterance is of the split 'dev'; there are train, validation, test"):
        FeatureDataset(make_features(Made()), "dev")
