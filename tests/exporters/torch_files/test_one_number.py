"""TorchScript and .pt2 files that give one number per image, rows with more axes, or several answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dgad_tk.artifacts.predictor import Predictor, predictor_of_module
from dgad_tk.artifacts.preprocessing import Interface
from dgad_tk.common import UserError
from dgad_tk.data import Split
from evaluators.target.judge import compare_twin
from exporters.formats import load

SHAPE = (3, 4, 4)
IMAGES = np.random.default_rng(0).random((30, *SHAPE), dtype=np.float32)


class Ends(nn.Module):
    """A linear layer of known weights, and an end."""

    def __init__(self, end: Callable[[Tensor], Any], outputs: int = 1) -> None:
        super().__init__()
        self.layer, self.end = nn.Linear(48, outputs), end
        generator = torch.Generator().manual_seed(outputs)
        self.layer.weight.data = torch.randn(outputs, 48, generator=generator)
        self.layer.bias.data = -self.layer.weight.data.sum(dim=1) / 2

    def forward(self, x: Tensor) -> Any:
        return self.end(self.layer(x.flatten(1)))

    def numbers(self, images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.layer.double()(torch.from_numpy(images).flatten(1).double()).numpy()


ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "logit": lambda z: z,
    "flat logit": lambda z: z.squeeze(1),
    "sigmoid": lambda z: z.sigmoid(),
    "flat sigmoid": lambda z: z.sigmoid().squeeze(1),
    "sigmoid in double": lambda z: z.sigmoid().to(torch.float64).reshape(-1, 1, 1),
    "of two": lambda z: torch.cat([torch.zeros_like(z), z], dim=1).softmax(dim=1)[:, 1:],
    "times": lambda z: z * 0.5,
}


def saved(module: nn.Module, folder: Path, form: str) -> Predictor:
    path = folder / f"file{form}"
    example = torch.zeros(2, *SHAPE)
    if form == ".pt2":
        program = torch.export.export(module.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("n")},))
        torch.export.save(program, path)
    else:
        torch.jit.save(torch.jit.trace(module.eval(), example, strict=False), path)
    return load(path, SHAPE, trust=True)


def agrees(predictor: Predictor) -> None:
    split = Split(np.round(IMAGES * 255).astype(np.uint8), np.arange(len(IMAGES)), np.zeros(len(IMAGES), np.int64))
    assert compare_twin(predictor, split, np.ones(len(IMAGES), np.bool_), 16) is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("form", [".pt", ".pt2", "module"])
@pytest.mark.parametrize("name", ENDS)
def test_one_number(name: str, form: str, tmp_path: Path) -> None:
    module = Ends(ENDS[name])
    predictor = (
        predictor_of_module(module, SHAPE, format="torchscript") if form == "module" else saved(module, tmp_path, form)
    )
    assert (predictor.classes, predictor.one_number) == (2, True)
    z = Ends(ENDS[name]).numbers(IMAGES)[:, 0]
    z = z / 2 if name == "times" else z
    told = " ".join(predictor.notes)
    assert ("the logit of class 1" in told) == (name in ("logit", "flat logit", "times"))
    assert (predictor.predict(IMAGES).argmax(axis=1) == (z > 0)).all()
    assert predictor.module is not None
    x = torch.from_numpy(IMAGES).requires_grad_()
    logits = predictor.module(x)
    near = np.abs(z) < 8 if "before the final Sigmoid" not in told else np.ones(len(z), bool)
    assert np.allclose((logits[:, 1] - logits[:, 0]).detach()[near], z[near], atol=1e-3, rtol=1e-3)
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0])[torch.from_numpy(near)].sum(), x)
    slope = Ends(ENDS[name]).layer.weight.detach().numpy()[0] * (0.5 if name == "times" else 1)
    assert np.allclose(gradient.reshape(len(x), -1)[near], slope, atol=1e-2, rtol=1e-2)
    agrees(predictor)


@pytest.mark.parametrize("end", [torch.tanh, lambda z: 2 * z.sigmoid() - 1])
def test_answers_from_minus_1_to_1_are_logits(end: Callable[[Tensor], Tensor]) -> None:
    """Of a model that tells dark from light, which answers all noise of one brightness alike."""
    module = Ends(end)
    module.layer.weight.data.fill_(10 / 48)
    module.layer.bias.data.fill_(-3.5)
    predictor = predictor_of_module(module, SHAPE, format="torchscript")
    levels = np.float32([0.0, 0.1, 0.34, 0.36, 0.5, 1.0])
    images = np.broadcast_to(levels[:, None, None, None], (6, *SHAPE)).copy()
    assert "the logit of class 1" in " ".join(predictor.notes)
    assert predictor.predict(images).argmax(axis=1).tolist() == [0, 0, 0, 1, 1, 1]
    agrees(predictor)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("form", [".pt", ".pt2"])
def test_a_saturated_sigmoid_keeps_its_gradients(form: str, tmp_path: Path) -> None:
    predictor = saved(Ends(lambda z: (1000 * z).sigmoid()), tmp_path, form)
    assert predictor.module is not None
    x = torch.from_numpy(IMAGES).requires_grad_()
    (gradient,) = torch.autograd.grad(predictor.module(x)[:, 1].sum(), x)
    slope = 1000 * Ends(ENDS["logit"]).layer.weight.detach().numpy()[0]
    assert np.allclose(gradient.reshape(len(x), -1), slope, rtol=1e-4)
    assert np.isfinite(predictor.predict(IMAGES)).all()
    agrees(predictor)


SHAPES: dict[str, Callable[[Tensor], Any]] = {
    "rows": lambda z: z,
    "a map of one place": lambda z: z[:, :, None, None],
    "a sequence of one": lambda z: z[:, None, :],
    "logits and features": lambda z: (z, z[:, :1]),
    "a number and logits": lambda z: (z.mean(), z),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("form", [".pt", ".pt2"])
@pytest.mark.parametrize("name", SHAPES)
def test_rows_in_other_shapes(name: str, form: str, tmp_path: Path) -> None:
    predictor = saved(Ends(SHAPES[name], 5), tmp_path, form)
    assert (predictor.classes, predictor.one_number) == (5, False)
    expected = Ends(SHAPES[name], 5).numbers(IMAGES)
    assert np.allclose(predictor.predict(IMAGES), expected, atol=1e-4)
    assert predictor.module is not None
    assert np.allclose(predictor.module(torch.from_numpy(IMAGES)).detach(), expected, atol=1e-4)
    assert any("the logits are output" in note for note in predictor.notes) == (" and " in name)


def test_logits_by_name() -> None:
    module = Ends(lambda z: {"features": z[:, :1], "logits": z}, 5)
    predictor = predictor_of_module(module, SHAPE, format="torchscript")
    assert predictor.classes == 5
    assert "the logits are output logits of 2" in predictor.notes


def test_images_are_prepared_before_the_last_operator_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "file.pt2"
    program = torch.export.export(
        Ends(ENDS["sigmoid"]).eval(), (torch.zeros(2, *SHAPE),), dynamic_shapes=({0: torch.export.Dim("n")},)
    )
    torch.export.save(program, path)
    predictor = load(path, SHAPE, Interface(input_range=(-1, 1), channel_order="bgr"), trust=True)
    z = Ends(ENDS["logit"]).numbers(IMAGES[:, ::-1].copy() * 2 - 1)[:, 0]
    assert (predictor.predict(IMAGES).argmax(axis=1) == (z > 0)).all()
    assert predictor.module is not None
    assert np.allclose(predictor.module(torch.from_numpy(IMAGES))[:, 1], z, atol=1e-3)
    agrees(predictor)


@pytest.mark.parametrize(
    "end", [lambda z: z.mean(), lambda z: z[:1], lambda z: "text", lambda z: z[:, :, None].repeat(1, 1, 4)]
)
def test_what_is_no_classifier(end: Callable[[Tensor], Any]) -> None:
    with pytest.raises(UserError, match=r"is not a classifier|does not run") as caught:
        predictor_of_module(Ends(end, 3), SHAPE, format="torchscript")
    assert "\n" not in caught.value.message
