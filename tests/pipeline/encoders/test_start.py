"""What a command loads before it encodes: transformers and torch would load far more than an encoder needs."""

import subprocess
import sys

import pytest
import torch

from pipeline.encoders import load_speech_encoder, load_text_encoder
from pipeline.params import AudioParams, TextParams

NEEDLESS = ("accelerate", "scipy.special", "sympy", "torch._dynamo.convert_frame", "torch.distributed.tensor")
ENCODE = """
import sys
from tests.pipeline.encoders.test_start import NEEDLESS, features
from pipeline.settings import only_encode
only_encode()
"""


def features() -> list[float]:
    """One number of each of the tiny encoders."""
    speech = load_speech_encoder(AudioParams.model_validate({"encoder": "tiny"}), "cpu")
    text = load_text_encoder(TextParams.model_validate({"encoder": "tiny"}), "cpu")
    frames = speech.encode([torch.sin(torch.arange(8_000) / 20)])
    return [float(abs(rows[0]).sum()) for rows in (frames, text.encode([text.tokenize("well, well")]))]


def run(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.soak
def test_a_command_loads_neither_compiler_nor_what_trains_and_has_the_features_of_a_program() -> None:
    found = run(f"{ENCODE}print(features(), *(name for name in NEEDLESS if name in sys.modules))")
    assert found == str(features())


@pytest.mark.soak
def test_who_compiles_all_the_same_can() -> None:
    compiled = "torch.compile(torch.compiler.disable(lambda x: x + 1), backend='eager')(torch.ones(2)).tolist()"
    assert run(f"{ENCODE}features()\nimport torch\nprint({compiled})") == "[2.0, 2.0]"
