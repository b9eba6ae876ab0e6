"""Classifiers of plain colours that want their images prepared in a known way, and images for them.

A class is a colour. An image is that colour, moved a little at random. A classifier knows the colours as its
preprocessing makes them, and answers the nearest: fed by another preprocessing, it sees other colours.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from dgad_tk.artifacts.preprocessing import Interface
from dgad_tk.data import Split

SIZE, CLASSES, PER_CLASS, MOVED = 4, 12, 25, 24
COLOURS = np.random.default_rng(6).integers(MOVED, 256 - MOVED, (CLASSES, 3))
"""Of the classes, RGB in grey levels."""


def pixels(per_class: int = PER_CLASS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `(N, 3, 4, 4)` and labels int64 `(N,)`, class by class in turn."""
    labels = np.tile(np.arange(CLASSES), per_class)
    moved = np.random.default_rng(seed).integers(-MOVED, MOVED + 1, (len(labels), 3))
    colours = np.uint8(COLOURS[labels] + moved)
    return np.broadcast_to(colours[:, :, None, None], (*colours.shape, SIZE, SIZE)).copy(), labels.astype(np.int64)


def colour_split(per_class: int = PER_CLASS) -> Split:
    images, labels = pixels(per_class)
    return Split(images, np.arange(len(images)), labels)


def colour_folder(folder: Path, names: Sequence[str], per_class: int = PER_CLASS) -> None:
    """The images as an image folder; `names[k]` is the folder of class k."""
    for part, count in (("train", 1), ("test", per_class)):
        for number, (image, label) in enumerate(zip(*pixels(count), strict=True)):
            place = folder / part / names[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{number:04}.png")


def weights(interface: Interface, in_front: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weight `(K, 3)` and bias `(K,)` that tell the nearest colour from the mean of a prepared image.

    Args:
        in_front: classes that are never answered, before those of the colours.
    """
    plain = torch.from_numpy(np.float32(COLOURS / 255)).reshape(CLASSES, 3, 1, 1)
    known = interface.preprocessing(3)(plain).reshape(CLASSES, 3).double().numpy()
    unit = float(np.abs(known).max())  # so that logits are of the size that a network's are
    weight = np.vstack([np.zeros((in_front, 3)), 2 * known / unit**2])
    bias = np.hstack([np.full(in_front, -1e4), -(known**2).sum(axis=1) / unit**2])
    return np.float32(30 * weight), np.float32(30 * bias)


class Nearest(nn.Module):
    """The classifier as a module that takes prepared images."""

    def __init__(self, interface: Interface, in_front: int = 0) -> None:
        super().__init__()
        weight, bias = weights(interface, in_front)
        self.weight, self.bias = nn.Parameter(torch.from_numpy(weight)), nn.Parameter(torch.from_numpy(bias))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)) @ self.weight.T + self.bias


def colour_file(
    path: Path,
    interface: Interface,
    *,
    nhwc: bool = False,
    in_front: int = 0,
    bytes: bool = False,
    quantised: tuple[float, int] | None = None,
) -> Path:
    """The classifier as an ONNX file.

    Args:
        bytes: whether it takes uint8, as numbers.
        quantised: scale and zero point of the uint8 that it takes, for prepared pixels.
    """
    weight, bias = weights(interface, in_front)
    shape = ["N", SIZE, SIZE, 3] if nhwc else ["N", 3, SIZE, SIZE]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    first = helper.make_node("Cast", ["x"], ["floats"], to=onnx.TensorProto.FLOAT)
    if quantised is not None:
        constants += [numpy_helper.from_array(np.float32(quantised[0]), "scale")]
        constants += [numpy_helper.from_array(np.uint8(quantised[1]), "zero")]
        first = helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["floats"])
    nodes = [
        first,
        helper.make_node("ReduceMean", ["floats"], ["mean"], axes=[1, 2] if nhwc else [2, 3], keepdims=0),
        helper.make_node("Gemm", ["mean", "w", "b"], ["logits"], transB=1),
    ]
    kind = onnx.TensorProto.UINT8 if bytes or quantised else onnx.TensorProto.FLOAT
    taken = helper.make_tensor_value_info("x", kind, shape)
    given = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", len(bias)])
    graph = helper.make_graph(nodes, "colours", [taken], [given], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path
