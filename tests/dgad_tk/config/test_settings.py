"""`--set`, `DGAD_*`, flags and config files: the type of the key says what a text is."""

from pathlib import Path
from typing import Any

import pytest
from shared import Run, runner

from dgad_tk.common import UserError
from dgad_tk.config.parsing import read_yaml, validated
from dgad_tk.config.recipe import load_recipe
from dgad_tk.config.settings import from_environment, parse_settings
from dgad_tk.config.training import TrainConfig
from dgad_tk.methods import build_method, typed_options
from evaluators.attacks import ATTACKS

TRICKY = ["photos #2", "2024-05-01", "2024", "010", "1e5", "yes", "12:30", "a: b", "[x]", "null", "None", "~x", "'q'"]
TRICKY += ["{a: 1}", "true", " x", "- a", "*a", "&a", "!b", "%c", "1.10", ".nan", "0x10", "a\tb", "é", "=", "<<"]


@pytest.fixture
def dgad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    return runner(capsys)


@pytest.mark.parametrize("text", TRICKY)
@pytest.mark.parametrize("key", ["data_dir", "teacher"])
def test_text_and_paths_are_what_stands_there(tmp_path: Path, key: str, text: str) -> None:
    for values in (parse_settings([f"{key}={text}"]), from_environment({f"DGAD_{key.upper()}": text})):
        config = validated(TrainConfig, values, "x")
        assert str(getattr(config, key)) == text
        config.save(tmp_path / "config.yaml")  # and what the run folder says reads back as the same
        assert validated(TrainConfig, read_yaml(tmp_path / "config.yaml"), "x") == config


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lr=1e-1", 0.1),
        ("lr=1/8", 0.125),
        ("epochs=1_000", 1000),
        ("epochs=1e1", 10),
        ("compile=yes", True),
        ("compile=Off", False),
        ("compile=1", True),
        ("nesterov=0", False),
        ("clip_grad=None", None),
        ("clip_grad=null", None),
        ("clip_grad=", None),
        ("image_size=~", None),
        ("data_dir=", None),
        ("milestones=0.5,0.75", (0.5, 0.75)),
        ("milestones=[1/2, 3/4]", (0.5, 0.75)),
        ("milestones=(100,)", (100.0,)),
        ("teacher_mean=[]", ()),
        ("precision=bf16", "bf16"),
    ],
)
def test_every_type_has_its_usual_forms(setting: str, value: Any) -> None:
    key = setting.partition("=")[0]
    config = validated(TrainConfig, parse_settings([setting]), "x")
    assert getattr(config, key) == value
    assert type(getattr(config, key)) is type(value)


def test_keys_that_hold_keys() -> None:
    for settings in (["threat.eps=4.5/255"], ["threat={eps: 4.5/255}"]):
        assert validated(TrainConfig, parse_settings(settings), "x").attack.eps == 4.5 / 255
    with pytest.raises(UserError, match="threat.steps must be a whole number, got '010'.*leave out the zero"):
        parse_settings(["threat.steps=010"])


@pytest.mark.parametrize("text", ["010", "1:30", "yes", "0x10", "1,5", "nan", ""])
@pytest.mark.parametrize("key", ["epochs", "lr", "momentum"])
def test_what_is_ambiguous_or_no_number_is_refused(key: str, text: str) -> None:
    with pytest.raises(UserError, match=f"--set {key} must be a") as caught:
        parse_settings([f"{key}={text}"])
    assert caught.value.hint
    with pytest.raises(UserError, match=f"DGAD_{key.upper()} must be a"):
        from_environment({f"DGAD_{key.upper()}": text})


def test_switches_are_no_numbers_nor_words() -> None:
    with pytest.raises(UserError, match="--set compile must be true or false, got 'maybe'"):
        parse_settings(["compile=maybe"])


def test_options_of_methods_are_typed_by_their_fields() -> None:
    options = {"dgad.pcr_weight": "1e1", "map": "no", "label_mode": "mix", "mixing": "1/4"}
    typed = typed_options("dgad", options)
    assert typed == {"dgad.pcr_weight": 10.0, "map": False, "label_mode": "mix", "mixing": 0.25}
    assert build_method("dgad", options) == build_method("dgad", typed)
    assert typed_options("rslad+igdm", {"igdm.weight": "2"}) == {"igdm.weight": 2.0}
    for bad in ("010", "yes", "much"):
        with pytest.raises(UserError, match=f"dgad.pcr_weight must be a number, got '{bad}'"):
            build_method("dgad", {"pcr_weight": bad})
    with pytest.raises(UserError, match="dgad.pcr_weight must be a number, got true"):
        build_method("dgad", {"pcr_weight": True})  # what YAML makes of yes


def test_parameters_of_attacks_are_typed_by_their_defaults() -> None:
    pgd = ATTACKS["pgd"].settings("pgd", {"steps": "1e1", "relative_step": "1/8", "loss": "dlr"})
    assert (pgd["steps"], pgd["relative_step"], pgd["loss"], pgd["restarts"]) == (10, 0.125, "dlr", 1)
    for bad in ("010", "1.5", "yes", "0"):
        with pytest.raises(UserError, match=f"pgd.steps must be a whole number of at least 1, got '{bad}'"):
            ATTACKS["pgd"].settings("pgd", {"steps": bad})


@pytest.mark.parametrize("flag", ["--epochs", "--seed", "--batch-size", "--limit-train", "--checkpoint-minutes"])
def test_flags_follow_the_same_rules(dgad: Run, flag: str) -> None:
    code, _, err = dgad("train", flag, "010")
    assert code == 2
    assert f"{flag} must be a" in err
    assert "hint: leave out the zero in front: 10" in err


def test_a_flag_may_be_written_as_a_power_of_ten(dgad: Run) -> None:
    code, _, err = dgad("train", "--epochs", "1e0", "--limit-train", "1e0")
    assert code == 2
    assert "limit_train: Input should be greater than or equal to 2, got 1" in err


FILES = [
    ("epochs: 3\n".encode("utf-16"), "is in UTF-16", "UTF-8"),
    ("epochs: 3\n".encode("utf-16-le"), "is in UTF-16", "UTF-8"),
    ("epochs: 3\n".encode("utf-32"), "is in UTF-16 or UTF-32", "UTF-8"),
    ("# Größe\n".encode("latin-1"), "is not in UTF-8: line 1", "UTF-8"),
    (b"epochs: 1\nclip_grad: None\n", "line 2: None is text to YAML", "write null"),
    (b"clip_grad: none\n", "clip_grad: none is text to YAML", "write null"),
    (b"early_stop: None # never\n", "line 1: None is text to YAML", "write null"),
    (b"student: None\n", "line 1: None is text to YAML", "'None' in quotes"),
    (b"student: ~\n", "student: Input should be a valid string, got None", "help"),
    (b"data_dir: 2024-05-01\n", "YAML takes 2024-05-01 for a date", "quotes: '2024-05-01'"),
    (b"data_dir: 2024-05-01 10:00:00\n", "for a date", "quotes"),
    (b"data_dir: 2024-13-45\n", "for a date", "quotes"),
    (b"data_dir: 2024\n", "data_dir must be text, and YAML takes 2024 for a number", "data_dir: '2024'"),
    (b"data_dir: 1e+5.\n", None, None),
    (b"data_dir: 1.5\n", "YAML takes 1.5 for a number", "quotes"),
    (b"student: yes\n", "student must be text, and YAML takes true for true or false", "quotes"),
    (b"data_dir: [x]\n", "data_dir must be text, and YAML takes ['x'] for a list", "quotes"),
    (b"data_dir: a: b\n", "is not YAML", "quotes"),
    (b"data_dir: 12:30\n", "for a number to base 60", "quotes"),
    (b"max_seconds: 1:30\n", "for a number to base 60", "plain number"),
    (b"max_seconds: 1:30.5\n", "for a number to base 60", "plain number"),
    (b"epochs: 010\n", "YAML takes 010 for 8", "write 10 or 8"),
    (b"method_options: {pcr_weight: 010}\n", "YAML takes 010 for 8", "write 10 or 8"),
    (b"data_dir: 010\n", "YAML takes 010 for 8", "in quotes: '010'"),
    (b"epochs: 08\n", "epochs must be a whole number, got '08'", "leave out the zero"),
    (b"epochs: yes\n", "epochs must be a number, got true", "number"),
    (b"lr: .nan\n", "lr: Input should be a finite number", "help"),
    (b"milestones: [0.5, on]\n", "milestones must be a number, got true", "number"),
    (b"normalize: no\n", "normalize must be text, and YAML takes false for true or false", "quotes"),
    (b"threat: {steps: yes}\n", "steps must be a number, got true", "number"),
    (b"method_options: {pcr_weight: 1:30}\n", "base 60", "plain number"),
    (b"epochs: 1\nlr: 0.1\nepochs: 2\n", "line 3: the key 'epochs' is given twice", "once"),
    (b"threat: {steps: 1, steps: 2}\n", "the key 'steps' is given twice", "once"),
    (b"yes: 1\n", "the key yes is no text", "quotes"),
    (b"1: 1\n", "the key 1 is no text", "quotes"),
    (b"~: 1\n", "the key ~ is no text", "quotes"),
    (b"? [a]\n: 1\n", "the key a list is no text", "quotes"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer, not a config", "git lfs"),
    (b"[" * 5000, "not YAML", "key: value"),
    (b"epochs: " + b"9" * 5000 + b"\n", "not YAML", "key: value"),
    (b"epochs: !!int abc\n", "not YAML", "key: value"),
    (b"paper: &a {row: [*a]}\n", "not YAML", "key: value"),
    (b"&a {paper: *a}\n", "not YAML", "key: value"),
    (b"epochs: !!python/object/apply:os.getcwd []\n", "not YAML", "key: value"),
    (b"", "must hold keys and values", "epochs: 30"),
]


@pytest.mark.parametrize(("content", "message", "hint"), FILES)
def test_files_say_what_to_write(tmp_path: Path, content: bytes, message: str | None, hint: str | None) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    if message is None:
        load_recipe(str(path))
        return
    with pytest.raises(UserError) as caught:
        validated(TrainConfig, load_recipe(str(path)).values, "config")
    assert message in caught.value.message
    assert hint is not None
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400 + len(str(path))


def test_options_in_a_file_are_read_when_the_method_is_known(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("method_options: {pcr_weight: 1e1, map: no, label_mode: mix}\n")
    config = validated(TrainConfig, load_recipe(str(tmp_path / "c.yaml")).values, "config")
    assert typed_options("dgad", config.method_options) == {"pcr_weight": 10.0, "map": False, "label_mode": "mix"}
    (tmp_path / "c.yaml").write_text("method_options: {pcr_weight: true}\n")
    config = validated(TrainConfig, load_recipe(str(tmp_path / "c.yaml")).values, "config")
    with pytest.raises(UserError, match=r"pcr_weight must be a number, got true"):
        build_method("dgad", config.method_options)


def test_what_a_mapping_takes_over_from_another_may_be_given_anew(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("paper: &a {row: x, table: 4}\nmethod_options: {<<: *a, table: 5}\n")
    assert read_yaml(tmp_path / "c.yaml")["method_options"] == {"row": "x", "table": 5}


def test_files_keep_the_forms_that_mean_one_thing(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    text = "\ufefflr: 1e-1\nepochs: 1_000\ncompile: yes\nclip_grad: null\naveraging: none\ndata_dir: '2024'\n"
    path.write_text(text + "teacher: 'None'\nmilestones: [1e-1, '1/2']\nthreat: {eps: 8/255, steps: '7'}\n", "utf-8")
    config = validated(TrainConfig, load_recipe(str(path)).values, "config")
    assert (config.lr, config.epochs, config.compile, config.clip_grad) == (0.1, 1000, True, None)
    assert (config.averaging, str(config.data_dir), config.teacher) == ("none", "2024", "None")
    assert (config.milestones, config.attack.eps, config.attack.steps) == ((0.1, 0.5), 8 / 255, 7)


def test_a_file_that_is_extended_is_named(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("student: 18\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nepochs: 3\n")
    with pytest.raises(UserError, match="base.yaml': student must be text"):
        load_recipe(str(tmp_path / "mine.yaml"))
