"""What callers hand to attacks from Python: read in every usual form, or a ValueError, by every attack alike."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from art.attacks.attack import EvasionAttack
from onnx import helper, numpy_helper

from evaluators.attacks import ATTACKS as ROWS
from evaluators.attacks.autoattack.apgd.apgd import APGD
from evaluators.attacks.autoattack.ensemble import AutoAttack
from evaluators.attacks.autoattack.fab.fab import FAB
from evaluators.attacks.autoattack.square.square import Square
from evaluators.attacks.cw2 import CarliniWagnerL2
from evaluators.attacks.jsma import SaliencyMap
from evaluators.attacks.pgd import ProjectedGradient
from evaluators.attacks.spec import Budget
from evaluators.target.estimators import OnnxClassifier
from exporters.formats import load

EPS, SHAPE = 8 / 255, (3, 6, 6)
LEVELS = np.array([50, 60, 70, 84, 95, 105, 115, 150])
LABELS = np.repeat([0, 1], 4)
IMAGES = np.float32(np.ones((8, *SHAPE)) * LEVELS.reshape(8, 1, 1, 1) / 255)

ATTACKS: dict[str, Callable[[Any], EvasionAttack]] = {
    "pgd": lambda net: ProjectedGradient(net, eps=EPS),
    "targeted pgd": lambda net: ProjectedGradient(net, eps=EPS, targeted=True),
    "apgd": lambda net: APGD(net, eps=EPS, steps=10),
    "fab": lambda net: FAB(net, eps=EPS, targets=1, steps=10),
    "square": lambda net: Square(net, eps=EPS, queries=50),
    "autoattack": lambda net: AutoAttack(net, eps=EPS, queries=50),
    "cw2": lambda net: CarliniWagnerL2(net, binary_search_steps=2, max_iter=20),
    "jsma": SaliencyMap,
    "ART's pgd": lambda net: ROWS["art:pgd"].build(net, Budget("linf", EPS, 0, 8), ROWS["art:pgd"].params),
    "ART's jsma": lambda net: ROWS["art:jsma"].build(net, Budget("l2", 0.0, 0, 8), ROWS["art:jsma"].params),
}
GOOD = {
    "(N,)": LABELS,
    "(N, 1)": LABELS[:, None],
    "one-hot": np.eye(2)[LABELS],
    "one-hot of integers": np.eye(2, dtype=np.int8)[LABELS],
    "floats": LABELS * 1.0,
    "unsigned": LABELS.astype(np.uint8),
    "a list": LABELS.tolist(),
    "a tensor": torch.from_numpy(LABELS),
    "bool": LABELS > 0,
}
BAD = {
    "no class": np.where(LABELS, 2, 0),
    "negative": np.where(LABELS, -1, 0),
    "a fraction": LABELS + 0.7,
    "not a number": LABELS * np.nan,
    "infinite": np.where(LABELS, np.inf, 0.0),
    "(1, N)": LABELS[None],
    "too few": LABELS[:4],
    "one for all": np.int64(1),
    "three columns": np.eye(3)[LABELS],
    "(N, K, 1)": np.eye(2)[LABELS][:, :, None],
    "two ones": np.ones((8, 2)),
    "no one": np.zeros((8, 2)),
    "probabilities": np.full((8, 2), 0.5),
    "names": np.where(LABELS, "light", "dark"),
}
BAD_IMAGES = {
    "0 to 255": IMAGES * 255,
    "uint8": np.uint8(IMAGES * 255),
    "black as integers": np.zeros((8, *SHAPE), np.int64),
    "normalised": (IMAGES - 0.35) / 0.2,
    "-1 to 1": 2 * IMAGES - 1,
    "NaN": np.where(np.arange(6) == 3, np.nan, IMAGES),
    "infinite": np.where(np.arange(6) == 3, np.inf, IMAGES),
    "channels last": IMAGES.transpose(0, 2, 3, 1),
    "one image": IMAGES[0],
    "flat": IMAGES.reshape(8, -1),
    "another size": IMAGES[:, :, :5],
}


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> OnnxClassifier:
    """An ONNX file that answers 1 where the mean is above 89.25 of 255."""
    pixels = int(np.prod(SHAPE))
    weights = np.float32(np.stack([-np.ones(pixels), np.ones(pixels)]) * 10 / pixels)
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["z"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "light",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.float32([3.5, -3.5]), "b")],
    )
    path = tmp_path_factory.mktemp("light") / "light.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return OnnxClassifier(load(path))


@pytest.mark.parametrize("name", ATTACKS)
def test_every_form_of_labels_gives_the_same_images(name: str, light: OnnxClassifier) -> None:
    expected = ATTACKS[name](light).generate(IMAGES, LABELS)
    for form, labels in GOOD.items():
        assert np.array_equal(ATTACKS[name](light).generate(IMAGES, labels), expected), form
    if "targeted" not in name:  # which cannot do without
        assert np.array_equal(ATTACKS[name](light).generate(IMAGES), expected)


@pytest.mark.parametrize("name", ATTACKS)
def test_other_labels_are_refused(name: str, light: OnnxClassifier) -> None:
    for form, labels in BAD.items():
        with pytest.raises(ValueError, match="expected .*labels"):
            ATTACKS[name](light).generate(IMAGES, labels)
            pytest.fail(form)


@pytest.mark.parametrize("name", ATTACKS)
def test_images_outside_the_contract_are_refused(name: str, light: OnnxClassifier) -> None:
    for form, images in BAD_IMAGES.items():
        with pytest.raises(ValueError, match="expected images"):
            ATTACKS[name](light).generate(images, LABELS)
            pytest.fail(form)


@pytest.mark.parametrize("name", ATTACKS)
def test_images_in_other_types_are_the_same_images(name: str, light: OnnxClassifier) -> None:
    expected = ATTACKS[name](light).generate(IMAGES, LABELS)
    before = IMAGES.copy()
    assert np.array_equal(ATTACKS[name](light).generate(IMAGES.astype(np.float64), LABELS), expected)
    assert np.array_equal(ATTACKS[name](light).generate(np.asfortranarray(IMAGES), LABELS), expected)
    assert np.array_equal(IMAGES, before), "the caller's images were written to"


def test_what_resizing_leaves_outside_is_clipped(light: OnnxClassifier) -> None:
    images = np.concatenate([np.zeros((4, *SHAPE)), np.ones((4, *SHAPE))])
    found = ProjectedGradient(light, eps=EPS).generate(images + np.where(images, 5e-7, -5e-7), LABELS)
    assert np.array_equal(found, ProjectedGradient(light, eps=EPS).generate(images, LABELS))


@pytest.mark.parametrize("eps", [8.0, 1.5, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("cls", [ProjectedGradient, APGD, FAB, Square, AutoAttack])
def test_no_radius_is_wider_than_the_pixels(cls: Any, eps: float, light: OnnxClassifier) -> None:
    with pytest.raises(ValueError, match="expected eps"):
        cls(light, eps=eps)
    attack = cls(light, eps=EPS)
    attack.eps = eps  # as ART's set_params does
    with pytest.raises(ValueError, match="expected eps"):
        attack.generate(IMAGES, LABELS)


def test_every_row_knows_the_same_bound() -> None:
    with pytest.raises(ValueError, match="expected eps"):
        Budget("linf", 8.0, seed=0, batch_size=8)


def test_in_l2_a_radius_may_be_above_one(light: OnnxClassifier) -> None:
    assert ProjectedGradient(light, norm="l2", eps=2.0).generate(IMAGES, LABELS).shape == IMAGES.shape


@pytest.mark.parametrize("index", [np.arange(7), np.arange(8.0), np.arange(8)[:, None]])
def test_indices_that_are_none_are_refused(index: Any, light: OnnxClassifier) -> None:
    with pytest.raises(ValueError, match="expected indices"):
        ProjectedGradient(light, eps=EPS).generate(IMAGES, LABELS, index=index)
