"""Weights and resume states: what is written reads back, what is damaged or hostile is one clear error."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from shared import artifact

from dgad_tk.artifacts.record import KEY, Artifact
from dgad_tk.artifacts.weights import load_model, load_state, save_state, save_weights
from dgad_tk.common import UserError
from dgad_tk.models import build_model


def test_weights_read_back_with_their_record(tmp_path: Path) -> None:
    record = artifact(normalize={"mean": [0.3], "std": [0.2]})
    model = build_model("resnet8", in_channels=1, classes=10, mean=[0.3], std=[0.2]).eval()
    save_weights(tmp_path / "w.safetensors", model, record)
    again, found = load_model(tmp_path / "w.safetensors")
    assert found == record
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(again(x), model(x))


def test_damaged_weights(tmp_path: Path, weights: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="it is cut short"):
        load_model(cut)
    with pytest.raises(UserError, match="no such file"):
        load_model(tmp_path / "missing.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="no dgad metadata record"):
        load_model(tmp_path / "foreign.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata={KEY: artifact().to_json()})
    with pytest.raises(UserError, match="do not fit a resnet8"):
        load_model(tmp_path / "odd.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "bad.safetensors", metadata={KEY: '{"model": 3}'})
    with pytest.raises(UserError, match="record is damaged"):
        load_model(tmp_path / "bad.safetensors")


def test_a_newer_record_keeps_what_an_older_reader_does_not_know() -> None:
    text = artifact().to_json()[:-1] + ', "novel": 7}'
    assert '"novel":7' in Artifact.from_json(text, "x").to_json()


def test_state_reads_back(tmp_path: Path) -> None:
    save_state(tmp_path / "s.ckpt", {"student": {"w": torch.ones(2)}, "state": {"epoch": 3, "score": (0.5, 0.1)}})
    state = load_state(tmp_path / "s.ckpt")
    assert state["state"] == {"epoch": 3, "score": (0.5, 0.1)}


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def test_a_pickle_that_would_run_code_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "bomb": Bomb()}, "bomb.ckpt")
    Path("raw.ckpt").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.ckpt", "raw.ckpt"):
        with pytest.raises(UserError, match="not a checkpoint that can be read safely"):
            load_state(Path(name))
    assert not Path("exploded").exists()
    pickle.loads(Path("raw.ckpt").read_bytes())  # the bomb does work
    assert Path("exploded").exists()


def test_states_of_other_versions(tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / "new.ckpt")
    with pytest.raises(UserError, match="of this version"):
        load_state(tmp_path / "new.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(UserError, match="read safely") as caught:
        load_state(tmp_path / "cut.ckpt")
    assert "start the run anew" in caught.value.hint
