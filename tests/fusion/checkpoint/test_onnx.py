"""Exported models answer in onnxruntime as they do in torch.

An export takes seconds, so five small models stand for all of them, which have every operator of ONNX that any model
has, and four of the five wait for `make soak`; tests/fusion/checkpoint/test_export.py exports a `concat`, too. With
ERC_EVERY_ONNX=1 in the environment every model is exported under every setting of tests/fusion/models/test_models.py.
"""

import json
import os
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from fusion.batch import Batch
from fusion.checkpoint import LoadedModel, Provenance
from fusion.checkpoint.onnx import export_onnx
from fusion.errors import OutputError
from fusion.layers import ScoreScale
from fusion.objective import Calibration
from pipeline.store import CorpusNote
from tests.fusion.batches import AUDIO_DIM, TEXT_DIM, make, make_batch, name_of, tensors_in
from tests.fusion.made import AUDIO, LABELS, TEXT, tiny_recipe
from tests.fusion.models.test_models import SETTINGS

TEMPERATURE = 1.7
A_FEW: list[tuple[str, dict[str, Any]]] = [
    ("audio", {"direction": "past", "classes": 1, "audio_layers": 2}),  # which tells scores
    (
        "hbaf",
        {
            "context": "conversation",
            "levels": "context",
            "self_attention": False,
            "conversation_encoder": "none",
            "auxiliary": False,
            "contrastive": False,
        },
    ),
    ("hbaf", {"attends": "turns", "levels": "raw", "direction": "past"}),
    ("dialoguernn", {"direction": "past"}),  # a loop along turns, and who speaks in them
    (
        "hcam",
        {
            "ensemble": True,
            "pooling": "mean",
            "text_pooling": "last",
            "turns": ["all", "own_speaker", "other_speakers", "neighbours"],
            "context_layers": 2,
            "context_skip": True,
            "attention_dim": 6,
            "heads": 3,
            "fusion_skip": True,
            "head": "linear",
            "contrast": "views",
        },
    ),
]
EVERY = [
    (name, setting)
    for name, several in SETTINGS.items()
    for setting in [{}, *several, {"audio_layers": 3, "text_layers": 2}, {"classes": 1}]
]
CASES = [
    pytest.param(
        name, json.dumps(setting), id=f"{name} {name_of(setting)}", marks=[] if name == "audio" else [pytest.mark.soak]
    )
    for name, setting in (EVERY if os.environ.get("ERC_EVERY_ONNX") else A_FEW)
]
EMPTY = [0, 0, 0]
CONVERSATIONS: dict[str, tuple[list[int], list[int]]] = {  # frames and tokens of each turn
    "as it was traced": ([7, 2, 7, 1, 3], [6, 1, 4, 2, 6]),
    "long": ([9, 1, 2, 3, 31, 4, 1, 2, 1, 5, 2, 1], [1, 2, 3, 1, 4, 2, 11, 1, 5, 2, 1, 3]),
    "one turn": ([4], [3]),
    "one frame, one token": ([1], [1]),
    "some without audio": ([0, 3, 0], [2, 1, 3]),
    "some without text": ([2, 1, 3], [0, 2, 0]),
    "some without either": ([0, 2, 0], [1, 0, 0]),
    "no audio": (EMPTY, [2, 1, 3]),
    "no text": ([2, 1, 3], EMPTY),
    "neither": (EMPTY, EMPTY),
    "one turn without either": ([0], [0]),
}


def loaded(name: str, setting: dict[str, Any]) -> LoadedModel:
    """An untrained model, as if it lay in a folder."""
    scores = setting.get("classes") == 1
    if scores and name == "hcam":
        setting = setting | {"scores": True, "supervised": False}
    model = make(name, **setting)
    for part in model.modules():
        if isinstance(part, ScoreScale):
            part.fit(3.0, 0.5)
    provenance = Provenance(
        recipe=tiny_recipe({"name": name}),
        seed=3,
        labels=() if scores else tuple(LABELS),
        audio=AUDIO,
        text=TEXT,
        features="f1",
        fingerprint="p1",
        selected={},
        validation={},
        calibration=None if scores else Calibration(TEMPERATURE, 0.2, 0.1),
        corpus=CorpusNote("conversations of tests", "free | for all"),
    )
    stored = {name: (setting.get(f"{name}_layers", 1), dim) for name, dim in (("audio", AUDIO_DIM), ("text", TEXT_DIM))}
    return LoadedModel(Path(), model, provenance, [], stored)


@cache
def exported(name: str, setting: str) -> tuple[LoadedModel, bytes, Any]:
    one = loaded(name, json.loads(setting))
    content = export_onnx(one)
    return one, content, onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def answers(one: LoadedModel, batch: Batch) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        logits = one.model(batch).logits
    if one.provenance.temperature is None:
        return {"scores": logits.numpy()}
    probabilities = (logits.double() / one.provenance.temperature).softmax(dim=-1)
    return {"probabilities": probabilities.numpy(), "logits": logits.numpy()}


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_onnxruntime_agrees_with_torch(name: str, setting: str) -> None:
    one, _, session = exported(name, setting)
    outputs = [output.name for output in session.get_outputs()]
    inputs = {given.name for given in session.get_inputs()}
    assert "speakers" in inputs or name not in ("dialoguernn", "dialoguegcn")
    layers = {f"{modality}_layers": one.stored[modality][0] for modality in ("audio", "text")}
    for conversation, (frames, tokens) in CONVERSATIONS.items():
        batch = make_batch([len(frames)], frames, tokens, **layers)
        given = {key: value.numpy() for key, value in tensors_in(batch).items() if key in inputs}
        found = dict(zip(outputs, session.run(None, given), strict=True))
        expected = answers(one, batch)
        assert list(found) == list(expected)
        for output, values in expected.items():
            np.testing.assert_allclose(found[output], values, rtol=0, atol=1e-4, err_msg=f"{output}: {conversation}")


def test_a_modality_that_was_withheld_is_nothing_to_a_graph() -> None:
    one = loaded("concat", {})
    recipe = tiny_recipe({"name": "concat", "modalities": "text"})
    one = replace(one, provenance=replace(one.provenance, recipe=recipe, audio=None))
    session = onnxruntime.InferenceSession(export_onnx(one), providers=["CPUExecutionProvider"])
    batch = make_batch([2], [4, 2], [2, 3])
    nothing = [replace(one, audio=0 * one.audio, audio_mask=torch.zeros_like(one.audio_mask)) for one in batch.groups]
    silent = replace(batch, groups=nothing)
    given = {given.name: tensors_in(batch)[given.name].numpy() for given in session.get_inputs()}
    np.testing.assert_allclose(session.run(None, given)[1], answers(one, silent)["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "setting"), CASES[-1:])
def test_a_graph_names_its_axes_and_says_what_it_is(name: str, setting: str) -> None:
    _, content, session = exported(name, setting)
    assert {given.name: given.shape for given in session.get_inputs()} == {
        "audio": ["turns", "frames", 5],
        "audio_mask": ["turns", "frames"],
        "text": ["turns", "tokens", 6],
        "text_mask": ["turns", "tokens"],
        "speakers": ["turns"],
    }
    assert [output.shape for output in session.get_outputs()] == [["turns", 3], ["turns", 3]]
    said = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert (said["erc.labels"], said["erc.temperature"]) == (LABELS, TEMPERATURE)
    assert (said["erc.audio_encoder"], said["erc.text_encoder"]) == (AUDIO.fields, TEXT.fields)
    assert (said["erc.audio_frames"], said["erc.licence"]) == (8, "free | for all")
    assert str(Path.cwd()).encode() not in content  # nor any other folder of this machine
    assert b"site-packages" not in content
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)


def test_without_its_libraries_the_export_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        OutputError, match=r'package onnxscript, which is not installed; pip install "path/to/erc-fusion\[onnx\]"'
    ):
        export_onnx(loaded("concat", {}))
