"""The one input of an image classifier in an ONNX file, and how images become that input."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dgad_tk.artifacts.predictor import Images
from dgad_tk.artifacts.preprocessing import UNIT_RANGE, Interface
from exporters.onnx_open.quantised_input import GREY_LEVELS, Levels

Shape = tuple[int, int, int]
TYPES: dict[str, tuple[torch.dtype, type[np.generic]]] = {
    "tensor(float)": (torch.float32, np.float32),
    "tensor(float16)": (torch.float16, np.float16),
    "tensor(double)": (torch.float64, np.float64),
    "tensor(uint8)": (torch.uint8, np.uint8),
    "tensor(int8)": (torch.int8, np.int8),
}


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

    def of_any_batch(self) -> "ImageInput":
        """The same input in a graph that takes any number of images."""
        return replace(self, batch=None)

    @property
    def plain(self) -> bool:
        """Whether images are fed as they are."""
        return self.type == "tensor(float)" and not (
            self.flat is not None or self.interface.layout == "nhwc" or self.interface.changes_images
        )

    @property
    def notes(self) -> list[str]:
        """What differs from any number of float images `(N, C, H, W)`, one sentence each."""
        raw = self.levels is not None and self.levels.scale == 1 and self.interface.input_range == GREY_LEVELS
        raw = raw and not (self.interface.mean or self.interface.std)
        told = replace(self.interface, input_range=UNIT_RANGE).note if raw else self.interface.note
        found = [told] if told else []
        if self.flat is not None:
            found.append(f"the file takes flat images, read {self.interface.layout} from {self.shape}")
        elif self.interface.layout == "nhwc":
            found.append(f"the file takes images {'(N, H, W, C)' if self.has_batch_axis else '(H, W, C)'}")
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
            x = x.reshape(x.shape[0], *self.flat)
        return x.to(self.dtype) if self.levels is None else self.levels(x)

    def array(self, images: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, Any]:
        """The tensor that ONNX Runtime is given for `images`, with an axis for the batch."""
        with torch.no_grad():
            fed = self(torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)))
        return np.ascontiguousarray(fed.numpy().astype(self.numpy_dtype, copy=False))


def noise(shape: Shape, count: int) -> Images:
    """Images to try a file on, `(count, C, H, W)`. Each is brighter than the one before."""
    values = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))
    return (values * torch.linspace(0.25, 1, count).reshape(-1, 1, 1, 1)).numpy()
