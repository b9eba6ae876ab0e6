"""images.npz: what the last step of an epoch saw, kept without changing the training."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import quick
from torch import nn

from dgad_tk.artifacts import examples as kept
from dgad_tk.artifacts.examples import MOST, Examples
from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.common import UserError
from dgad_tk.config.threat import ThreatModel
from dgad_tk.data import load_dataset
from dgad_tk.methods import METHODS, Batch, Step
from dgad_tk.training.train import train


def seen_by(monkeypatch: pytest.MonkeyPatch, method: str) -> list[tuple[Batch, Step]]:
    """Every batch and step of a method from now on."""
    found: list[tuple[Batch, Step]] = []
    own = METHODS[method].step

    def step(self: Any, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        found.append((batch, own(self, student, teacher, batch, threat)))
        return found[-1][1]

    monkeypatch.setattr(METHODS[method], "step", step)
    return found


def test_the_arrays_are_what_the_last_step_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = seen_by(monkeypatch, "dgad")
    folder = train(quick(), out=tmp_path / "r")
    batch, step = steps[-1]
    assert len(steps) == 3 * 3
    with np.load(folder.images, allow_pickle=False) as arrays:  # by numpy alone, as a stranger reads it
        found = dict(arrays)
    assert set(found) == {"epoch", "index", "label", "clean", "adversarial", "clean_pred", "adv_pred"}
    assert int(found["epoch"]) == 2
    assert found["clean"].dtype == np.float32
    assert step.x_adv is not None
    assert step.logits_clean is not None
    np.testing.assert_array_equal(found["clean"], batch.x[:MOST].numpy())
    np.testing.assert_array_equal(found["adversarial"], step.x_adv[:MOST].numpy())
    np.testing.assert_array_equal(found["label"], batch.y[:MOST].numpy())
    np.testing.assert_array_equal(found["adv_pred"], step.logits[:MOST].argmax(dim=1).numpy())
    np.testing.assert_array_equal(found["clean_pred"], step.logits_clean[:MOST].argmax(dim=1).numpy())
    train_split = load_dataset("digits").train
    places = [int(np.flatnonzero(train_split.index == each)[0]) for each in found["index"]]
    np.testing.assert_array_equal(train_split.labels[places], found["label"])
    assert 0 < np.abs(found["adversarial"] - found["clean"]).max() <= 0.15 + 1e-6


def test_a_method_that_attacks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = seen_by(monkeypatch, "standard")
    folder = train(quick(method="standard", epochs=1, limit_train=4), out=tmp_path / "r")
    found = Examples.read(folder.images)
    assert found.adversarial is None
    assert found.adv_pred is None
    assert found.clean_pred is not None
    np.testing.assert_array_equal(found.clean_pred, steps[-1][1].logits.argmax(dim=1).numpy())
    assert len(found.label) == 4


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if name not in ("standard", "kd")])
def test_clean_answers_are_those_on_the_clean_images(method: str) -> None:
    """In eval mode, where the order of the forwards does not matter."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    batch = Batch(x, y, lambda kind: torch.zeros_like(x), 4)
    step = METHODS[method]().step(net.eval(), net, batch, ThreatModel.of("linf", 0.1, 2))
    if step.logits_clean is not None:
        torch.testing.assert_close(step.logits_clean.argmax(dim=1), net(x).argmax(dim=1))
        assert not step.logits_clean.requires_grad
    assert (step.logits_clean is None) == (method == "akd")  # it has none at hand


def test_keeping_them_changes_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_images = train(quick(epochs=2), out=tmp_path / "with")
    monkeypatch.setattr("dgad_tk.training.epoch._examples", lambda batch, step, index: None)
    without = train(quick(epochs=2), out=tmp_path / "without")
    assert not without.images.exists()
    assert with_images.best.read_bytes() == without.best.read_bytes()


def test_damaged_files_are_refused_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, n = tmp_path / "images.npz", 3
    numbers, images = np.arange(n), np.zeros((n, 1, 8, 8), np.float32)
    whole = Examples(epoch=4, index=numbers, label=numbers, clean=images, adversarial=images, adv_pred=numbers)
    whole.save(path)
    assert Examples.read(path).epoch == 4
    content = path.read_bytes()
    whole_arrays = {"epoch": 4, "index": numbers, "label": numbers, "clean": images}
    wrong: dict[str, dict[str, Any]] = {
        "no labels": {"epoch": 4, "index": numbers, "clean": images},
        "other shapes": whole_arrays | {"adversarial": images[:, :, :4]},
        "other types": whole_arrays | {"clean": images.astype(np.float64)},
        "too few": whole_arrays | {"clean_pred": numbers[:2]},
        "an epoch that is no number": whole_arrays | {"epoch": np.array(["x"])},
        "epochs": whole_arrays | {"epoch": numbers},
        "labels without a shape": whole_arrays | {"label": np.int64(3)},
    }
    for arrays in wrong.values():
        np.savez(path, **arrays)
        with pytest.raises(UserError, match="as training images"):
            Examples.read(path)
    for damage in (b"", content[:200], content[:-30], b"PK\x03\x04" + bytes(100), bytes(100)):
        path.write_bytes(damage)
        with pytest.raises(UserError, match="as training images"):
            Examples.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("label.npy", pickle.dumps([1]))
    with pytest.raises(UserError, match="as training images"):
        Examples.read(path)
    whole.save(path)
    monkeypatch.setattr(kept, "LARGEST", 100)
    with pytest.raises(UserError, match="more than 100 bytes"):
        Examples.read(path)
    with pytest.raises(UserError, match="as training images"):
        Examples.read(tmp_path / "none.npz")


def test_the_record_carries_what_the_paper_prints(tmp_path: Path) -> None:
    from dgad_tk.artifacts.weights import read_weights

    paper = {"table": 4, "row": "a row", "figures": {"aa": 50.59}, "source": "the paper", "teacher_file": "no file"}
    one = train(quick(epochs=1, paper=paper), out=tmp_path / "a")
    other = train(quick(epochs=1), out=tmp_path / "b")
    said = read_weights(RunFolder(one.path).best)[1].training
    assert said.pop("paper") == {key: value for key, value in paper.items() if key != "teacher_file"}
    assert said == read_weights(other.best)[1].training
