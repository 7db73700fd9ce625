"""Shell completion, asked for as shells ask: the command is run with what is on the command line in its environment."""

import contextlib
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from pydantic import ConfigDict

from pipeline.settings import Overrides, Section, join_words, single_command
from tests.test_readme import APPS

BIN = Path(sys.executable).parent
PROJECT = Path(__file__).parents[1]


def ask(command: str, folder: Path = PROJECT, **environment: str) -> list[str]:
    """What `command` answers to a shell."""
    shell = "complete_bash" if "COMP_WORDS" in environment else "complete_zsh"
    given = environment | {variable_of(command): shell}
    answer = io.StringIO()
    with mock.patch.dict(os.environ, given), contextlib.chdir(folder), contextlib.redirect_stdout(answer):
        if "COMP_WORDS" in environment:
            join_words(os.environ)  # as the import of commands does
        with pytest.raises(SystemExit):
            APPS[command](prog_name=command, args=[])
    return answer.getvalue().splitlines()


def variable_of(command: str) -> str:
    return f"_{command.replace('-', '_').upper()}_COMPLETE"


def in_bash(*words: str, folder: Path = PROJECT) -> list[str]:
    """The last of `words` is the one at the cursor; bash has split them at `=`."""
    return ask(words[0], folder, COMP_WORDS="\n".join(words), COMP_CWORD=str(len(words) - 1))


def test_options_are_completed() -> None:
    assert in_bash("fusion-train", "--fe") == ["--features"]
    assert {"--manifest", "--set", "--device"} <= set(in_bash("pipeline-audio", "--"))


def test_keys_of_parameters_are_completed() -> None:
    found = in_bash("fusion-train", "--set", "model.d")
    assert found[:3] == ["model.dim=", "model.dropout=", "model.direction="]
    assert {key.split(".")[1] for key in found[3:]} == {"dialoguernn", "dialoguegcn"}  # groups of models
    assert in_bash("pipeline-audio", "--set", "audio.finetune.mask") == [
        "audio.finetune.mask_time=",
        "audio.finetune.mask_features=",
    ]


def test_keys_of_a_model_are_completed_as_params_yaml_has_them(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("model: {hbaf: {gate: true, context: both, context_turns: 4}, hcam: }\n")
    found = in_bash("fusion-train", "--set", "model.hbaf.c", folder=tmp_path)
    assert found == ["model.hbaf.context=", "model.hbaf.context_turns="]
    found = in_bash("fusion-train", "--set", "model.hbaf.g", folder=tmp_path)
    assert found == ["model.hbaf.gate=true", "model.hbaf.gate=false"]
    (tmp_path / "params.yaml").write_text("model: [")
    assert in_bash("fusion-train", "--set", "model.hbaf.g", folder=tmp_path) == [""]


def test_the_one_key_that_is_left_comes_with_its_values() -> None:
    assert in_bash("fusion-train", "--set", "train.see") == ["train.seeds=[0,1,2]"]


@pytest.mark.parametrize(("words", "values"), [(["="], ["hbaf", "hcam"]), (["=", "h"], ["hbaf", "hcam"])])
def test_bash_is_given_the_part_behind_the_equals_sign_alone(words: list[str], values: list[str]) -> None:
    assert in_bash("fusion-train", "--set", "model.name", *words)[:2] == values


def test_words_before_the_cursor_may_have_equals_signs() -> None:
    assert in_bash("fusion-ablate", "--set", "train.epochs", "=", "5", "--device", "cu") == ["cuda"]
    assert in_bash("fusion-ablate", "--device", "=", "c") == ["cpu", "cuda"]


def test_other_shells_are_given_whole_words() -> None:
    answer = ask("pipeline-audio", _TYPER_COMPLETE_ARGS="pipeline-audio --set audio.dtype=f")
    assert answer == ["""_arguments '*: :(("audio.dtype=float16\"""", """"audio.dtype=float32"))'"""]


def test_sets_of_params_yaml_are_completed(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("ablations: {no gate: {model.hbaf.gate: false}, hcam: {model.name: hcam}}\n")
    assert in_bash("fusion-ablate", "--only", "", folder=tmp_path) == ["base", "no\\ gate", "hcam"]
    assert in_bash("fusion-ablate", "--only", "h", folder=tmp_path) == ["hcam"]
    (tmp_path / "params.yaml").write_text("ablations: [\n")
    assert in_bash("fusion-ablate", "--only", "", folder=tmp_path) == ["base"]


class OpenSection(Section):
    """Takes groups that it does not know."""

    model_config = ConfigDict(extra="allow")
    dim: int = 8


def test_keys_of_groups_that_a_section_does_not_know_are_those_of_params_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(overrides: Overrides) -> None: ...

    monkeypatch.setitem(APPS, "mine", single_command(body, sections={"model": f"{__name__}:OpenSection"}))
    assert in_bash("mine", "--set", "model.", folder=tmp_path) == ["model.dim=8"]
    (tmp_path / "params.yaml").write_text("model: {dim: 4, name: mine, mine: {gate: true, layers: [1, 2]}}\n")
    keys = ["model.dim=", "model.mine.gate=", "model.mine.layers="]
    assert in_bash("mine", "--set", "model.", folder=tmp_path) == keys
    values = ["model.mine.gate=true", "model.mine.gate=false"]
    assert in_bash("mine", "--set", "model.mine.g", folder=tmp_path) == values
    assert in_bash("mine", "--set", "model.mine.layers", "=", folder=tmp_path) == ["[1,2]"]


def test_keys_are_completed_without_torch() -> None:
    """Who presses a key does not wait for seconds."""
    script = (
        "import sys, contextlib\nfrom fusion.cli import train_app\nfrom pipeline.cli import audio_app\n"
        "for app in (train_app, audio_app):\n"
        "    with contextlib.suppress(SystemExit):\n        app(prog_name='command', args=[])\n"
        "assert 'torch' not in sys.modules"
    )
    asked = {"_COMMAND_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": "command --set e"}
    asked["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | asked, capture_output=True, text=True, check=True
    )
    assert "evaluate.resamples=" in done.stdout
    assert "evaluate.degrade.noise=" in done.stdout


def test_bash_itself_completes_a_parameter() -> None:
    """The script that `--show-completion` prints, in a bash that is given a command line."""
    words = ["fusion-train", "--set", "model.name", "=", "h"]
    asked = (
        f"source <({BIN}/fusion-train --show-completion)\nCOMP_WORDS=({shlex.join(words)})\nCOMP_CWORD=4\n"
        f'_fusion_train_completion {BIN}/fusion-train\necho "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "--norc", "-c", asked], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert done.stdout == "hbaf hcam\n", done.stderr
