"""OnnxClassifier as ART sees it: ONNX Runtime predicts, the twin differentiates, ART's own attacks run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from art.attacks.evasion import AutoProjectedGradientDescent, HopSkipJump, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from shared import Victim
from victims import as_onnx

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.artifacts.weights import load_model
from dgad_tk.common import UserError
from evaluators.target.estimators import Counted, OnnxClassifier, to_estimator
from exporters.export import export
from exporters.formats import load


@pytest.fixture
def predictor(weights: Path, tmp_path: Path) -> Predictor:
    export(weights, "onnx", tmp_path / "student.onnx")
    return load(tmp_path / "student.onnx")


def test_onnx_runtime_predicts(predictor: Predictor, digit_images: np.ndarray) -> None:
    asked: list[int] = []

    def noted(images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.float32
        assert images.flags.c_contiguous
        asked.append(len(images))
        return predictor.predict(images)

    estimator = OnnxClassifier(replace(predictor, predict=noted))
    logits = estimator.predict(digit_images, batch_size=10)
    np.testing.assert_array_equal(
        logits, np.concatenate([predictor.predict(digit_images[:10]), predictor.predict(digit_images[10:])])
    )
    assert asked == [10, 6]
    np.testing.assert_array_equal(estimator.predict(digit_images.astype(np.float64), batch_size=10), logits)
    transposed = np.transpose(np.ascontiguousarray(digit_images.transpose(0, 2, 3, 1)), (0, 3, 1, 2))
    np.testing.assert_array_equal(estimator.predict(transposed, batch_size=10), logits)
    assert estimator.predict(digit_images[:0]).shape == (0, 10)
    with pytest.raises(ValueError, match="no training mode"):
        estimator.predict(digit_images, training_mode=True)


def test_gradients_are_the_source_modules(predictor: Predictor, weights: Path, digit_images: np.ndarray) -> None:
    model, _ = load_model(weights)
    labels = np.arange(16) % 10
    x = torch.from_numpy(digit_images).requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(x), torch.from_numpy(labels), reduction="sum")
    (expected,) = torch.autograd.grad(loss, x)
    estimator = OnnxClassifier(predictor)
    # ART takes the mean of the loss over a batch.
    found = estimator.loss_gradient(digit_images.astype(np.float64), np.eye(10, dtype=np.float32)[labels]) * 16
    assert np.abs(found - expected.numpy()).max() <= 1e-4 * float(expected.abs().max())
    every = estimator.class_gradient(digit_images)
    assert every.shape == (16, 10, 1, 8, 8)
    mixed = estimator.class_gradient(digit_images, label=labels)
    np.testing.assert_allclose(mixed[:, 0], every[np.arange(16), labels], atol=1e-6)
    np.testing.assert_allclose(mixed, PyTorchClassifier.class_gradient(estimator, digit_images, labels), atol=1e-6)
    np.testing.assert_allclose(estimator.class_gradient(digit_images, label=3)[:, 0], every[:, 3], atol=1e-6)


def test_arts_own_attacks_run_on_the_file(victim: Victim, tmp_path: Path) -> None:
    """Those that rebuild a PyTorchClassifier from `.model`, and one that sends float64, too."""
    estimator = OnnxClassifier(as_onnx(victim[0], tmp_path, (1, 8, 8)))
    digit_images = victim[1][:16]
    assert isinstance(estimator, PyTorchClassifier)
    y = estimator.predict(digit_images).argmax(1)
    attacks = [
        ProjectedGradientDescent(estimator, eps=0.2, eps_step=0.05, max_iter=5, verbose=False),
        AutoProjectedGradientDescent(estimator, eps=0.2, eps_step=0.05, max_iter=5, nb_random_init=1, verbose=False),
        HopSkipJump(estimator, max_iter=1, max_eval=50, init_eval=10, verbose=False),
    ]
    for attack in attacks:
        adversarial = attack.generate(digit_images, y=None if isinstance(attack, HopSkipJump) else y)
        assert adversarial.shape == digit_images.shape
        assert (estimator.predict(adversarial).argmax(1) != y).any(), type(attack).__name__


def test_formats_and_their_estimators(predictor: Predictor) -> None:
    assert type(to_estimator(predictor)) is OnnxClassifier
    assert type(to_estimator(replace(predictor, network=predictor.module))).__name__ == "PredictorClassifier"
    with pytest.raises(UserError, match="no differentiable module"):
        OnnxClassifier(replace(predictor, module=None))


def test_a_torch_file_is_judged_as_it_is_and_searched_folded(weights: Path, digit_images: np.ndarray) -> None:
    predictor, x = load(weights), torch.from_numpy(digit_images)
    assert predictor.network is not None
    assert predictor.module is not None
    assert any(isinstance(each, torch.nn.BatchNorm2d) for each in predictor.network.modules())
    assert not any(isinstance(each, torch.nn.BatchNorm2d) for each in predictor.module.modules())
    with torch.no_grad():
        np.testing.assert_array_equal(predictor.predict(digit_images), predictor.network(x).numpy())
        np.testing.assert_allclose(predictor.module(x).numpy(), predictor.predict(digit_images), rtol=1e-4, atol=1e-4)
    assert to_estimator(predictor).model is predictor.module


def test_passes_are_counted() -> None:
    counted = Counted(torch.nn.Flatten())
    x = torch.rand(3, 1, 2, 2, requires_grad=True)
    counted(x).sum().backward()
    counted(x.detach())
    assert (counted.forwards, counted.backwards) == (6, 3)
