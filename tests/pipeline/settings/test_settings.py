"""params.yaml and --set: strict, and answering every mistake with file, key, what was found and what is accepted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from fusion.cli import predict_app, train_app
from pipeline.cli import audio_app
from pipeline.params import AudioParams, DatasetParams, DegradeParams, FeaturesParams, TextParams
from pipeline.settings import SECTION_NAMES, Section, SettingsError, check_overrides, check_section, read_section

SECTIONS: dict[str, type[Section]] = {
    "dataset": DatasetParams,
    "audio": AudioParams,
    "text": TextParams,
    "features": FeaturesParams,
}


def read(path: Path, content: str, overrides: Sequence[str] = ()) -> Any:
    """The section that `content` (or else the first override) begins with."""
    path.write_text(content, encoding="utf-8")
    name = next(name for name in SECTIONS if (content or overrides[0]).startswith(name))
    return read_section(path, name, SECTIONS[name], overrides)


@pytest.mark.parametrize("name", SECTIONS)
def test_the_parameters_that_come_with_the_project_are_accepted(name: str) -> None:
    content = yaml.safe_load((Path(__file__).parents[3] / "params.yaml").read_text(encoding="utf-8"))
    assert read_section(Path(__file__).parents[3] / "params.yaml", name, SECTIONS[name]) is not None
    assert set(content[name]) == set(SECTIONS[name].model_fields)
    assert set(content) <= set(SECTION_NAMES)


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("dataset.root", "~/corpus", "/home/ada/corpus"),
        ("dataset.root", "~", "/home/ada"),
        ("dataset.table", "~/turns.csv", "/home/ada/turns.csv"),
        ("audio.encoder", "~/wav2vec2", "/home/ada/wav2vec2"),
        ("text.encoder", "~/bert", "/home/ada/bert"),
        ("text.finetune.encoder", "~/bert", "/home/ada/bert"),
        ("dataset.root", "here/~/corpus", "here/~/corpus"),
        ("dataset.root", "~no-such-user/corpus", "~no-such-user/corpus"),
        ("audio.encoder", "facebook/wav2vec2-base", "facebook/wav2vec2-base"),
    ],
)
def test_a_path_may_begin_at_the_users_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, given: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    found = read(tmp_path / "params.yaml", "", [f"{key}={given!r}"])
    for name in key.split(".")[1:]:
        found = getattr(found, name)
    assert found == expected


@pytest.mark.parametrize("content", ["", "audio:\n", "audio: {}\n", "text: {encoder: tiny}\n"])
def test_an_absent_section_means_its_defaults(tmp_path: Path, content: str) -> None:
    (tmp_path / "params.yaml").write_text(content)
    assert read_section(tmp_path / "params.yaml", "audio", AudioParams) == AudioParams()


def test_a_section_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        AudioParams().encoder = "other"  # type: ignore[misc]


def test_lists_and_exponents_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    audio = read(tmp_path / "params.yaml", "audio: {layers: [1, 2], batch: 1e2, window_seconds: 8}")
    assert (audio.layers, audio.batch, audio.window_seconds) == ((1, 2), 100.0, 8.0)


@given(layers=st.lists(st.integers(0, 24), min_size=1, max_size=4), seconds=st.floats(0.5, 1e4))
@settings(max_examples=30, deadline=None)
def test_what_yaml_holds_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, layers: list[int], seconds: float
) -> None:
    content = yaml.safe_dump({"audio": {"layers": layers, "batch": seconds}})
    audio = read(tmp_path_factory.getbasetemp() / "any.yaml", content)
    assert (audio.layers, audio.batch) == (tuple(layers), seconds)


def test_overrides_win_and_those_of_other_sections_are_left_alone(tmp_path: Path) -> None:
    overrides = ["dataset.columns.text=Utterance", "dataset.split=speaker", "train.seeds=[1]", "dataset.split_seed=7"]
    dataset = read(tmp_path / "params.yaml", "dataset: {split: given, root: x}\n", overrides)
    assert (dataset.root, dataset.split, dataset.split_seed, dataset.columns.text) == ("x", "speaker", 7, "Utterance")


def test_an_override_that_no_section_of_the_command_is_for_is_refused(tmp_path: Path) -> None:
    check_overrides(["model.gate=false", "train.seeds=[1]", "no such=form"], ["model", "train"])
    for app, override in ((audio_app, "model.dim=8"), (train_app, "audio.layers=[1]"), (predict_app, "train.epochs=1")):
        required = [] if app is audio_app else ["--features", "f.h5", "--model", "m"][: 4 if app is predict_app else 2]
        done = CliRunner().invoke(app, [*required, "--set", override])
        section = override.split(".")[0]
        assert done.exit_code == 2
        assert done.stderr.startswith(
            f"error: --set '{override}': section '{section}' has no effect on these commands, which take"
        )


def test_a_group_is_read_alone_and_the_rest_of_its_section_left_to_others(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("evaluate: {resamples: zzz, degrade: {noise: [20, 0.5], seed: 3}}")
    overrides = ["evaluate.degrade.seed=4", "evaluate.confidence=zzz", "evaluate.degrade.word_errors=[0.1]"]
    degrade = read_section(path, "evaluate.degrade", DegradeParams, overrides)
    assert (degrade.noise, degrade.seed, degrade.word_errors) == ((20.0, 0.5), 4, (0.1,))
    assert read_section(path, "evaluate.degrade", DegradeParams, ["evaluate.degrade={seed: 9}"]).seed == 9
    assert read_section(None, "evaluate.degrade", DegradeParams, ["evaluate.degrade.seed=5"]).seed == 5


def test_an_override_without_its_section_is_answered_with_where_the_file_has_such_a_key(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("audio: {encoder: x}\ntext: {encoder: y}\nmodel: {gate: true}\nloss: \n")
    for override, hint in (("gate=false", "'model.gate'"), ("encoder=x", "'audio.encoder' or 'text.encoder'")):
        with pytest.raises(SettingsError) as error:
            read_section(tmp_path / "params.yaml", "audio", AudioParams, [override])
        assert str(error.value).endswith(f"expected section.key=value, such as train.seeds=[0,1]; did you mean {hint}?")


@pytest.mark.parametrize("content", ["", "evaluate:\n", "evaluate: {seed: 1}\n", "evaluate: {degrade: }\n"])
def test_an_absent_group_means_its_defaults(tmp_path: Path, content: str) -> None:
    (tmp_path / "params.yaml").write_text(content)
    assert read_section(tmp_path / "params.yaml", "evaluate.degrade", DegradeParams) == DegradeParams()


WRONG_GROUPS = {
    "key": ("degrade: {nois: [1]}", "unknown key 'evaluate.degrade.nois'; did you mean 'evaluate.degrade.noise'?"),
    "no group": ("degrade: 3", "group 'evaluate.degrade' must hold keys and values, found 3"),
    "rate": ("degrade: {word_errors: [1.5]}", "'evaluate.degrade.word_errors.0' is 1.5: input should be less than"),
    "no rate": ("degrade: {word_errors: [0]}", "'evaluate.degrade.word_errors.0' is 0: input should be greater than 0"),
    "twice": ("degrade: {noise: [1, 1.0]}", "every level may be given once only"),
    "ratio": ("degrade: {noise: [.inf]}", "'evaluate.degrade.noise.0' is inf: input should be"),
    "no kind": ("degrade: {substitute: 0, delete: 0, insert: 0}", "substitute, delete and insert are all 0"),
}


@pytest.mark.parametrize("name", WRONG_GROUPS)
def test_a_mistake_in_a_group_is_answered_by_its_full_name(tmp_path: Path, name: str) -> None:
    content, expected = WRONG_GROUPS[name]
    (tmp_path / "params.yaml").write_text(f"evaluate: {{{content}}}")
    with pytest.raises(SettingsError) as error:
        read_section(tmp_path / "params.yaml", "evaluate.degrade", DegradeParams)
    assert str(error.value).startswith(str(tmp_path / "params.yaml"))
    assert expected in str(error.value)


BOMB = "".join(f"x{level}: &a{level} {{0}}{', '.join([f'*a{level - 1}'] * 9)}{{1}}\n" for level in range(1, 12))
WRONG = {
    "key": ("audio: {encodr: x}", "unknown key 'audio.encodr'; did you mean 'audio.encoder'?"),
    "key like none": ("features: {zzz: 1}", "unknown key 'features.zzz'; known here: copy_parts"),
    "nested key": (
        "dataset: {columns: {txet: x}}",
        "unknown key 'dataset.columns.txet'; did you mean 'dataset.columns.text'?",
    ),
    "value": (
        "dataset: {split: speakers}",
        "'dataset.split' is 'speakers': input should be 'given', 'conversation' or 'speaker'; did you mean 'speaker'?",
    ),
    "type": ("audio: {encoder: 3}", "'audio.encoder' is 3: input should be a valid string; put it in quotes"),
    "a text for a number": ("text: {batch: many}", "'text.batch' is 'many': input should be 'auto' or a valid int"),
    "a text for a truth": (
        "features: {copy_parts: 'yes'}",
        "'features.copy_parts' is 'yes': input should be a valid b",
    ),
    "null": ("audio: {encoder: null}", "'audio.encoder' is None: input should be a valid string"),
    "a bare ~": (
        "audio: {encoder: ~}",
        "; ~ alone and an empty value are null in YAML: give a value, and write '~' in",
    ),
    "range": ("dataset: {test_share: 1.5}", "'dataset.test_share' is 1.5: input should be less than 1"),
    "fraction": ("dataset: {split_seed: 1.5}", "'dataset.split_seed' is 1.5: input should be a valid integer"),
    "not a number": ("audio: {batch: .nan}", "'audio.batch' is nan: input should be 'auto' or a finite number"),
    "infinite": ("audio: {batch: .inf}", "'audio.batch' is inf: input should be 'auto' or a finite number"),
    "word for layers": (
        "audio: {layers: lst}",
        "'audio.layers' is 'lst': input should be 'last' or 'all' or 'last-4' or a list; did you mean 'last'?",
    ),
    "negative layer": ("audio: {layers: [-1]}", "'audio.layers.0' is -1: input should be greater than or equal to 0"),
    "no layers": (
        "audio: {layers: []}",
        "'audio.layers' is []: input should be 'last' or 'all' or 'last-4' or list should have at least 1 item",
    ),
    "group": ("dataset: {columns: text}", "'dataset.columns' is 'text': input should be a group of keys and values"),
    "two shares": (
        "dataset: {test_share: 0.9, validation_share: 0.3}",
        "'dataset': validation_share 0.3 and test_share 0.9 leave nothing for train",
    ),
    "window": ("audio: {window_seconds: 3}", "overlap_seconds 4.0 is more than half of window_seconds 3.0"),
    "not a section": ("audio: 5", "section 'audio' must hold keys and values, found 5"),
    "misspelt section": ("audio: {}\ndatset: {}", "no section is called 'datset'; did you mean 'dataset'?"),
    "foreign section": ("audio: {}\nzzz: {}", "no section is called 'zzz'; sections are dataset, audio, text,"),
    "a key twice": ("audio:\n  dtype: float16\n  dtype: float32", "not valid YAML: key 'dtype' is given twice"),
    "a tab": ("audio:\n\tdtype: float16", "not valid YAML: while scanning for the next token found character"),
    "not closed": ("audio: [", "not valid YAML"),
    "python": ("audio: !!python/object/apply:os.getcwd []", "not valid YAML: could not determine a constructor"),
    "an alias bomb": ("audio: &a0 [1, 1]\n" + BOMB.format("[", "]"), "more than 10,000 values once every alias"),
    "a merge bomb": ("audio: &a0 {a: 1}\n" + BOMB.format("{<<: [", "]}"), "more than 10,000 values"),
    "an alias in itself": ("audio: &a {encoder: *a}", "an alias (*name) stands inside what it names"),
    "no such day": ("audio: {encoder: 2001-99-99}", "a date, number or tag in it cannot be read (month must be in"),
    "no date at all": ("audio: {encoder: !!timestamp soon}", "a date, number or tag in it cannot be read"),
    "too many digits": ("audio: {layers: " + "9" * 5000 + "}", "a date, number or tag in it cannot be read (Exceeds"),
    "hexadecimal": ("audio: {layers: 0x" + "f" * 5000 + "}", "cannot be read (an integer of more than 4,300 digits)"),
    "sexagesimal": ("audio: {layers: 9" + ":59" * 5000 + "}", "cannot be read (an integer of more than 4,300 digits)"),
    "many digits": ("audio: {layers: " + "9" * 4000 + "}", "(4,000 characters)"),
    "nested lists": ("audio: {layers: " + "[" * 900 + "]" * 900 + "}", "nested more than 50 deep"),
    "nested groups": ("audio: {layers: " + "{a: " * 60 + "1" + "}" * 60 + "}", "nested more than 50 deep"),
    "a date as a key": ("audio: {2001-01-01: x}", "unknown key 'audio.2001-01-01'"),
    "a large file": ("audio: {encoder: " + "x" * 1_000_000 + "}", "characters, more than 1,000,000"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_answered_with_file_key_and_what_is_accepted(tmp_path: Path, name: str) -> None:
    content, expected = WRONG[name]
    with pytest.raises(SettingsError) as error:
        read(tmp_path / "params.yaml", content)
    message = str(error.value)
    assert expected in message
    assert message.startswith(f"{tmp_path / 'params.yaml'}: ")
    assert "\n" not in message
    assert "tuple" not in message


def test_all_mistakes_of_a_section_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        read(tmp_path / "params.yaml", "audio: {encodr: x, dtype: float61, window_seconds: 1}")
    assert all(key in str(error.value) for key in ("audio.encodr", "audio.dtype", "audio.window_seconds"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("audio.encodr=x", "unknown key 'audio.encodr'; did you mean 'audio.encoder'?"),
        ("audio.dtype=float61", "'audio.dtype' is 'float61': input should be 'float16' or 'float32'"),
        ("audoi.encoder=x", "override 'audoi.encoder=x': no section 'audoi'; did you mean 'audio'?"),
        ("encoder=x", "override 'encoder=x': expected section.key=value, such as train.seeds=[0,1]"),
        ("audio.encoder", "override 'audio.encoder': expected section.key=value"),
        ("audio.=x", "override 'audio.=x': expected section.key=value"),
        ("audio.layers=[1", "override 'audio.layers=[1': the value is not valid YAML"),
        ("audio.layers=" + "9" * 5000, "cannot be read (Exceeds"),
        ("audio.layers=" + "[" * 900 + "]" * 900, "nested more than 50 deep"),
        ("audio.layers=&a [*a]", "an alias (*name) stands inside what it names"),
        ("audio.encoder.name=x", "'audio.encoder'"),
        ("dataset.columns.txet=x", "unknown key 'dataset.columns.txet'; did you mean 'dataset.columns.text'?"),
    ],
)
def test_a_mistaken_override_is_answered_by_itself(tmp_path: Path, override: str, expected: str) -> None:
    name = "dataset" if override.startswith("dataset") else "audio"
    (tmp_path / "params.yaml").write_text("")
    with pytest.raises(SettingsError) as error:
        read_section(tmp_path / "params.yaml", name, SECTIONS[name], [override])
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("audio.batch=0", "'auto' or greater than 0"),
        ("audio.batch=1e9", "'auto' or less than or equal to 36000"),
        ("audio.batch=many", "'auto' or a valid number"),
        ("text.batch=1.5", "'auto' or a valid integer"),
        ("audio.layers=first", "'last' or 'all' or 'last-4' or a list"),
        ("audio.precision=float64", "'float32' or 'bfloat16'"),
    ],
)
def test_a_value_of_several_types_is_answered_once(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(SettingsError) as error:
        read(tmp_path / "params.yaml", "", [override])
    message = str(error.value)
    assert message.startswith(f"override {override!r}: '{override.partition('=')[0]}' is ")
    assert message.endswith(f": input should be {expected}")
    assert message.count("input should be") == 1


@pytest.mark.parametrize(
    ("name", "content", "overrides", "expected"),
    [
        ("audio", "", ["audio.dtype=x"], "override 'audio.dtype=x': 'audio.dtype' is 'x': "),
        (
            "audio",
            "audio: {dtype: y}",
            ["audio.dtype=float32", "audio.dtype=x"],
            "override 'audio.dtype=x': 'audio.dty",
        ),
        ("audio", "", ["audio.layers=[-1]"], "override 'audio.layers=[-1]': 'audio.layers.0' is -1: "),
        ("audio", "audio: {dtype: y}", ["audio.encoder=x"], "FILE: 'audio.dtype' is 'y': "),
        ("audio", "audio: {dtype: y}", ["text.dtype=x"], "FILE: 'audio.dtype' is 'y': "),
        ("dataset", "", ["dataset.columns={txet: x}"], "override 'dataset.columns={txet: x}': unknown key"),
        ("dataset", "", ["dataset.columns.txet=x"], "override 'dataset.columns.txet=x': unknown key"),
        (
            "dataset",
            "dataset: {validation_share: 0.3}",
            ["dataset.test_share=0.9"],
            "FILE override 'dataset.test_share=0.9': 'dataset': validation_share 0.3 and test_share 0.9 leave nothing",
        ),
    ],
)
def test_a_mistake_is_told_of_where_it_was_made(
    tmp_path: Path, name: str, content: str, overrides: Sequence[str], expected: str
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content)
    with pytest.raises(SettingsError) as error:
        read_section(path, name, SECTIONS[name], overrides)
    assert str(error.value).startswith(expected.replace("FILE", str(path)))


def test_mistakes_of_the_file_and_of_overrides_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("audio: {dtype: y, batch: 0}")
    with pytest.raises(SettingsError) as error:
        read_section(path, "audio", AudioParams, ["audio.mix=x"])
    message = str(error.value)
    assert "override 'audio.mix=x': 'audio.mix' is 'x'" in message
    assert f"; {path}: 'audio.dtype' is 'y'" in message
    assert "; 'audio.batch' is 0" in message


def test_an_override_that_is_no_group_is_told_by_itself(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("evaluate: {degrade: {seed: 1}}")
    with pytest.raises(
        SettingsError, match=r"^override 'evaluate\.degrade=3': group 'evaluate\.degrade' must hold keys"
    ):
        read_section(tmp_path / "params.yaml", "evaluate.degrade", DegradeParams, ["evaluate.degrade=3"])


def test_a_value_cannot_be_taken_for_a_group(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'text' is not a group of keys"):
        read(tmp_path / "params.yaml", "dataset: {columns: {text: x}}", ["dataset.columns.text.name=y"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, r"no such file; run the command where params.yaml lies, or name the file \(--params\)"),
        ("- audio", "must hold sections such as 'dataset:', found list"),
        ("audio", "must hold sections such as 'dataset:', found str"),
        (b"audio: {encoder: caf\xe9}", "cannot be read"),
        (b"a\0u", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_params_file_is_refused(tmp_path: Path, content: str | bytes | None, expected: str) -> None:
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError, match=expected):
        read_section(path, "audio", AudioParams)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_section(tmp_path, "audio", AudioParams)


def test_a_section_that_is_in_memory_is_checked_alike() -> None:
    assert check_section({"layers": [3]}, "audio", AudioParams, source="config.json").layers == (3,)
    with pytest.raises(
        SettingsError, match=r"^config\.json: unknown key 'audio\.layer'; did you mean 'audio\.layers'\?"
    ):
        check_section({"layer": [3]}, "audio", AudioParams, source="config.json")
