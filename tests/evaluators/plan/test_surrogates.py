"""Surrogates trained on the spot: made once, kept, and never half a folder."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from processes import together

import evaluators.plan.surrogates as surrogates
from dgad_tk.data import load_dataset
from dgad_tk.distributed import joined
from dgad_tk.training.job import Progress


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(surrogates, "EPOCHS", 1)
    monkeypatch.setattr(surrogates, "IMAGES", 64)


def test_made_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, seen = load_dataset("digits"), list[Progress]()
    made = surrogates.made_on_the_spot(dataset, on_progress=seen.append)
    assert [each.name for each in made] == ["resnet8", "resnet20"]
    assert {state.role for state in seen} == {"surrogate resnet8", "surrogate resnet20"}
    assert all(each.predictor and each.predictor.input_shape == dataset.shape for each in made)
    seen.clear()
    again = surrogates.made_on_the_spot(dataset, on_progress=seen.append)
    assert not seen
    assert [each.predictor and each.predictor.sha256 for each in again] == [
        each.predictor and each.predictor.sha256 for each in made
    ]
    monkeypatch.setattr(surrogates, "IMAGES", 32)
    surrogates.made_on_the_spot(dataset, on_progress=seen.append)
    assert seen  # another training is another surrogate


def test_an_interrupted_training_leaves_nothing(tmp_path: Path) -> None:
    def stop(state: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        surrogates.made_on_the_spot(load_dataset("digits"), on_progress=stop)
    assert list((tmp_path / "cache" / "surrogates").iterdir()) == []
    assert len(surrogates.made_on_the_spot(load_dataset("digits"))) == 2


def _made_together(cache: str) -> list[str]:
    os.environ["DGAD_CACHE"] = cache
    surrogates.EPOCHS, surrogates.IMAGES = 1, 64
    with joined(torch.device("cpu"), patience=timedelta(seconds=60)):
        made = surrogates.made_on_the_spot(load_dataset("digits"))
    return [each.predictor.sha256 for each in made if each.predictor]


def test_processes_that_attack_together_train_them_together(tmp_path: Path) -> None:
    """With the leader alone in it, the training would wait for the others, and they for its end."""
    one, other = (child.result() for child in together(2, _made_together, str(tmp_path)))
    assert len(one) == 2
    assert one == other
