"""What an ONNX file takes: its one input, read as images, and how images become that input."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from dgad_tk.artifacts.preprocessing import UNIT_RANGE, Interface, Layout
from dgad_tk.common import UserError
from exporters.onnx_open.image_axes import Shape, holds, in_three_axes, is_flat, lacks_batch_axis, which_layout
from exporters.onnx_open.quantised_input import (
    Levels,
    Quantiser,
    doubt_of_levels,
    doubt_of_range,
    find_quantiser,
    means_grey_levels,
)

GREY_LEVELS = (0.0, 255.0)
TYPES: dict[str, tuple[torch.dtype, type[np.generic]]] = {
    "tensor(float)": (torch.float32, np.float32),
    "tensor(float16)": (torch.float16, np.float16),
    "tensor(double)": (torch.float64, np.float64),
    "tensor(uint8)": (torch.uint8, np.uint8),
    "tensor(int8)": (torch.int8, np.int8),
}
ENDS = {"tensor(uint8)": (0, 255), "tensor(int8)": (-128, 127)}


@dataclass(frozen=True)
class ImageInput:
    """The input of an image classifier.

    Attributes:
        shape: (C, H, W) of an image.
        batch: how many images it takes at a time, None for any number.
        flat: sizes after the batch of an input whose pixels are not in three axes, else None. One may be -1.
        interface: as asked for, with the layout and range that were found.
        has_batch_axis: False where the file takes one image as it is, without an axis that counts images.
        levels: how pixels become the numbers of an input of 8 bits, else None.
        remarks: what else to know about this reading, one sentence each.
    """

    name: str
    type: str
    shape: Shape
    batch: int | None
    flat: tuple[int, ...] | None
    interface: Interface
    has_batch_axis: bool = True
    levels: Levels | None = None
    remarks: tuple[str, ...] = ()

    def feed(self) -> "Feed":
        return Feed(self)

    @property
    def plain(self) -> bool:
        """Whether images are fed as they are."""
        return self.type == "tensor(float)" and not (
            self.flat is not None or self.interface.layout == "nhwc" or self.interface.changes_values
        )

    @property
    def notes(self) -> list[str]:
        """What differs from any number of float images `(N, C, H, W)`, one sentence each."""
        raw = self.levels is not None and self.levels.scale == 1 and self.interface.input_range == GREY_LEVELS
        raw = raw and not (self.interface.mean or self.interface.std)
        found = [self.interface.note] if self.interface.note and not raw else []
        if self.flat is not None:
            found.append(f"the file takes flat images, read {self.interface.layout} from {self.shape}")
        elif self.interface.layout == "nhwc":
            found.append("the file takes images " + ("(N, H, W, C)" if self.has_batch_axis else "(H, W, C)"))
        if raw:
            less = ", less 128," if self.type == "tensor(int8)" else ""
            found.append(
                f"images are rounded to 256 grey levels{less} for the file; gradients pass through the rounding"
            )
        elif self.levels is not None:
            found.append(
                f"pixels are quantised for the file, with scale {self.levels.scale:g} and zero point "
                f"{self.levels.zero_point}; gradients pass through the rounding"
            )
        if not self.has_batch_axis:
            found.append("the file has no axis for the batch: ONNX Runtime is given one image at a time")
        elif self.batch is not None:
            images = "1 image" if self.batch == 1 else f"{self.batch} images"
            found.append(f"ONNX Runtime is given {images} at a time, as the file demands")
        return [*found, *self.remarks]


class Feed(nn.Module):
    """Turns images `(N, C, H, W)` in [0, 1] into what the graph of a file computes with. Differentiable.

    The twin and ONNX Runtime are both fed by it. Integers stay floats here, since only floats have gradients. The axis
    for the batch stays, whether or not the file has one.
    """

    def __init__(self, image: ImageInput) -> None:
        super().__init__()
        self.preprocessing = image.interface.preprocessing(image.shape[0])
        self.nhwc, self.flat = image.interface.layout == "nhwc", image.flat
        self.levels = image.levels
        self.dtype, self.numpy_dtype = TYPES[image.type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.preprocessing(x)
        if self.nhwc:
            x = x.permute(0, 2, 3, 1)
        if self.flat is not None:
            x = x.reshape(len(x), *self.flat)
        return x.to(self.dtype) if self.levels is None else self.levels(x)

    def array(self, images: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, Any]:
        """The tensor that ONNX Runtime is given for `images`, with an axis for the batch."""
        with torch.no_grad():
            fed = self(torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)))
        return np.ascontiguousarray(fed.numpy().astype(self.numpy_dtype, copy=False))


def image_inputs(
    inputs: Sequence[Any], model: ModelProto, known: Shape | None, interface: Interface, where: str
) -> list[ImageInput]:
    """The ways to read a session's inputs as images, the likeliest first.

    There is more than one only where the file leaves the rank of its input open: running it tells which.

    Args:
        inputs: `InferenceSession.get_inputs()`.
        model: the graph of the session.
        known: (C, H, W) of the images it is for, where somebody said so.

    Raises:
        UserError: several inputs, no images, or a shape that can be read in two ways.
    """
    found = ", ".join(f"{entry.name}: {entry.type} {_declared(model, entry)}" for entry in inputs) or "no input"
    if len(inputs) != 1 or inputs[0].type not in TYPES or (_has_rank(model, inputs[0].name) and not inputs[0].shape):
        raise UserError(f"'{where}' is not an image classifier: it takes {found}", hint=EXPECTED)
    (entry,) = inputs
    interface, levels, remarks = _numbers(interface, entry.type, find_quantiser(model.graph, entry.name), where)
    base = ImageInput(entry.name, entry.type, known or (0, 0, 0), None, None, interface, True, levels, remarks)
    ways = _of_any_rank(base, known, where) if not entry.shape else [_of_shape(base, entry.shape, known, found, where)]
    for image in ways:
        image.feed()  # mean and std must fit the channels
    return ways


EXPECTED = "expected one input (N, C, H, W) or (N, H, W, C) of floats or 8-bit integers"


def _of_any_rank(base: ImageInput, known: Shape | None, where: str) -> list[ImageInput]:
    """Readings of an input that says nothing of its axes, which the known images then say."""
    if known is None:
        raise UserError(
            f"'{where}' leaves its input's shape open, the number of its axes too",
            hint="name the images with --dataset",
        )
    asked = base.interface.layout
    layouts: list[Layout] = [asked] if asked else ["nchw", "nhwc"]
    ways = []
    for flat in (None, (int(np.prod(known)),)):
        for layout in layouts:
            shown = {"nchw": "(N, C, H, W)", "nhwc": "(N, H, W, C)"}[layout] if flat is None else "flat"
            remark = f"the file leaves the number of its input's axes open: images are given {shown}"
            remark += "" if asked else "; --layout nchw or nhwc if that is not their order"
            read = replace(base.interface, layout=layout)
            ways.append(replace(base, flat=flat, interface=read, remarks=(*base.remarks, remark)))
    return ways


def _of_shape(base: ImageInput, declared: Sequence[Any], known: Shape | None, found: str, where: str) -> ImageInput:
    """The reading of an input of these sizes, some of which may be open."""
    sizes = [size if isinstance(size, int) and size > 0 else None for size in declared]
    alone = known is not None and lacks_batch_axis(sizes, known)
    batch, axes = (1, sizes) if alone else (sizes[0], sizes[1:])
    base, asked = replace(base, batch=batch, has_batch_axis=not alone), base.interface.layout
    if len(axes) == 3 and not is_flat(axes, known):
        layout = asked or which_layout(axes, known, where)
        shape = in_three_axes(axes, layout, known, where)
        return replace(base, shape=shape, interface=replace(base.interface, layout=layout))
    if known is None or not axes or not holds(axes, known):
        for_these = f" for images of {known}" if known else ""
        hint = f"{EXPECTED}, with an axis for the batch"
        raise UserError(
            f"'{where}' is not an image classifier{for_these}: it takes {found}",
            hint=f"{hint}; --image-size sets the size of an image folder"
            if known
            else f"{hint}; if it takes flat images, or one without that axis, name them with --dataset",
        )
    if known[0] > 1 and asked is None:
        what = f"flat images {list(declared)}" + (" without an axis for the batch" if alone else "")
        raise UserError(
            f"'{where}' takes {what}, and their pixels may be in the order of (C, H, W) or of (H, W, C)",
            hint="--layout nchw or --layout nhwc",
        )
    flat = tuple(-1 if size is None else size for size in axes)
    return replace(base, shape=known, flat=flat, interface=replace(base.interface, layout=asked or "nchw"))


def _numbers(
    interface: Interface, type: str, quantiser: Quantiser | None, where: str
) -> tuple[Interface, Levels | None, tuple[str, ...]]:
    """What pixels become for an input of `type`: the range they are brought to, 8-bit numbers, and what to doubt."""
    if type not in ENDS:
        return interface, None, ()
    low, high = ENDS[type]
    grey = replace(interface, input_range=GREY_LEVELS), Levels(1.0, low, low, high)
    if interface.mean or interface.std or interface.input_range not in (UNIT_RANGE, GREY_LEVELS):
        if quantiser is None or quantiser.scale is None or quantiser.zero_point is None:
            kind = type.removeprefix("tensor(").removesuffix(")")
            raise UserError(
                f"'{where}' takes {kind}, and its graph names no scale for all of it: grey levels, not normalised",
                hint="leave out --mean, --std and --input-range for it",
            )
        levels = Levels(quantiser.scale, quantiser.zero_point, low, high)
        doubt = doubt_of_range(levels, interface)
        return interface, levels, (doubt,) if doubt else ()
    # Whoever names the range of grey levels knows what he gives.
    sure = quantiser is None or interface.input_range == GREY_LEVELS or means_grey_levels(quantiser, low)
    return *grey, () if sure or quantiser is None else (doubt_of_levels(quantiser, low),)


def _has_rank(model: ModelProto, name: str) -> bool:
    """Whether a graph says how many axes its input has; a session gives no shape for that and for a single number."""
    return any(each.name == name and each.type.tensor_type.HasField("shape") for each in model.graph.input)


def _declared(model: ModelProto, entry: Any) -> str:
    return str(entry.shape) if _has_rank(model, entry.name) else "of any rank"
