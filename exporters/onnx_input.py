"""What an ONNX file takes: its one input read as images, and images turned into it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dgad_tk.common import UserError
from dgad_tk.interface import UNIT_RANGE, Interface, Layout

CHANNELS = (1, 3, 4)
GREY_LEVELS = (0.0, 255.0)
TYPES: dict[str, tuple[torch.dtype, type[np.generic]]] = {
    "tensor(float)": (torch.float32, np.float32),
    "tensor(float16)": (torch.float16, np.float16),
    "tensor(double)": (torch.float64, np.float64),
    "tensor(uint8)": (torch.uint8, np.uint8),
}
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class ImageInput:
    """The input of an image classifier.

    Attributes:
        shape: (C, H, W) of an image.
        batch: how many images it takes at a time, None for any number.
        flat: sizes after the batch of an input whose pixels are not in three axes, else None. One may be -1.
        interface: as asked for, with the layout and range that were found.
    """

    name: str
    type: str
    shape: Shape
    batch: int | None
    flat: tuple[int, ...] | None
    interface: Interface

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
        """What differs from float images `(N, C, H, W)` of any number, a sentence each."""
        found = [self.interface.note] if self.interface.note and self.type != "tensor(uint8)" else []
        if self.flat is not None:
            found.append(f"the file takes flat images, read {self.interface.layout} from {self.shape}")
        elif self.interface.layout == "nhwc":
            found.append("the file takes images (N, H, W, C)")
        if self.type == "tensor(uint8)":
            found.append("images are rounded to 256 grey levels for the file; gradients pass through the rounding")
        if self.batch is not None:
            images = "1 image" if self.batch == 1 else f"{self.batch} images"
            found.append(f"ONNX Runtime is given {images} at a time, as the file demands")
        return found


class Feed(nn.Module):
    """Images `(N, C, H, W)` in [0, 1] to what the graph of a file computes with; differentiable.

    The twin and ONNX Runtime are both fed by this. Integers stay float numbers here, since only those have gradients.
    """

    def __init__(self, image: ImageInput) -> None:
        super().__init__()
        self.preprocessing = image.interface.preprocessing(image.shape[0])
        self.nhwc, self.flat = image.interface.layout == "nhwc", image.flat
        self.dtype, self.numpy_dtype = TYPES[image.type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.preprocessing(x)
        if self.nhwc:
            x = x.permute(0, 2, 3, 1)
        if self.flat is not None:
            x = x.reshape(len(x), *self.flat)
        if self.dtype is torch.uint8:
            rounded: Tensor = _Round.apply(x)
            return rounded
        return x.to(self.dtype)

    def array(self, images: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, Any]:
        """The tensor that ONNX Runtime is given for `images`."""
        with torch.no_grad():
            fed = self(torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)))
        if self.dtype is torch.uint8:
            fed = fed.clamp(*GREY_LEVELS)  # 256 would become 0
        return np.ascontiguousarray(fed.numpy().astype(self.numpy_dtype, copy=False))


class _Round(torch.autograd.Function):
    """Rounding with the gradient of the identity: its own is zero almost everywhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def image_input(inputs: Sequence[Any], known: Shape | None, interface: Interface, where: str) -> ImageInput:
    """Read a session's inputs as images.

    Args:
        inputs: `InferenceSession.get_inputs()`.
        known: (C, H, W) of the images it is for, where somebody said so.

    Raises:
        UserError: several inputs, no images, or a shape that can be read in two ways.
    """
    found = ", ".join(f"{entry.name}: {entry.type} {entry.shape}" for entry in inputs) or "no input"
    hint = "expected one input (N, C, H, W) or (N, H, W, C) of floats or uint8"
    if len(inputs) != 1 or inputs[0].type not in TYPES or len(inputs[0].shape) < 2:
        raise UserError(f"'{where}' is not an image classifier: it takes {found}", hint=hint)
    name, type, (batch, *sizes) = inputs[0].name, inputs[0].type, inputs[0].shape
    interface = _with_range(interface, type, where)
    declared = [size if isinstance(size, int) and size > 0 else None for size in sizes]
    flat = None
    if len(declared) == 3 and not _is_flat(declared, known):
        layout = interface.layout or _layout(declared, known, where)
        shape = _in_three_axes(declared, layout, known, where)
    else:
        if known is None or not _holds(declared, known):
            for_these = f" for images of {known}" if known else ""
            raise UserError(
                f"'{where}' is not an image classifier{for_these}: it takes {found}",
                hint=hint if known else f"{hint}; if these are flat images, name them with --dataset",
            )
        if known[0] > 1 and interface.layout is None:
            raise UserError(
                f"'{where}' takes flat images {inputs[0].shape}, and their pixels may be in the order of (C, H, W) or "
                "of (H, W, C)",
                hint="--layout nchw or --layout nhwc",
            )
        shape, layout = known, interface.layout or "nchw"
        flat = tuple(-1 if size is None else size for size in declared)
    fixed = batch if isinstance(batch, int) and batch > 0 else None
    image = ImageInput(name, type, shape, fixed, flat, replace(interface, layout=layout))
    image.feed()  # mean and std must fit the channels
    return image


def _with_range(interface: Interface, type: str, where: str) -> Interface:
    """uint8 says its range itself."""
    if type != "tensor(uint8)":
        return interface
    if interface.mean or interface.std or interface.input_range not in (UNIT_RANGE, GREY_LEVELS):
        raise UserError(
            f"'{where}' takes uint8: grey levels from 0 to 255, not normalised",
            hint="leave out --mean, --std and --input-range for it",
        )
    return replace(interface, input_range=GREY_LEVELS)


def _layout(declared: Sequence[int | None], known: Shape | None, where: str) -> Layout:
    """Which of three axes are the channels.

    Raises:
        UserError: it can be the first and the last.
    """
    fits: list[Layout] = [layout for layout in ("nchw", "nhwc") if _as_nchw(declared, layout) == known]
    if len(fits) == 1:
        return fits[0]
    first, middle, last = declared
    if last not in CHANNELS:
        return "nchw"
    if first not in CHANNELS:
        return "nhwc"
    # Both could count channels: as a rule images are square.
    if (middle == last) != (first == middle):
        return "nchw" if middle == last else "nhwc"
    raise UserError(
        f"'{where}' takes images of {tuple(declared)}: the channels may be the first of these or the last",
        hint="--layout nchw or --layout nhwc",
    )


def _as_nchw(declared: Sequence[int | None], layout: Layout) -> tuple[int | None, ...]:
    return tuple(declared) if layout == "nchw" else (declared[2], declared[0], declared[1])


def _is_flat(declared: Sequence[int | None], known: Shape | None) -> bool:
    """Whether three axes are one with two more of size 1, and the known images are not like that."""
    if known is None or sum(size == 1 for size in declared) < 2:
        return False
    return _holds(declared, known) and known not in (_as_nchw(declared, "nchw"), _as_nchw(declared, "nhwc"))


def _holds(declared: Sequence[int | None], known: Shape) -> bool:
    """Whether these sizes hold the pixels of an image; one may be open."""
    pixels, sized = int(np.prod(known)), int(np.prod([size for size in declared if size is not None]))
    left_open = sum(size is None for size in declared)
    return sized == pixels if not left_open else left_open == 1 and pixels % sized == 0


def _in_three_axes(declared: Sequence[int | None], layout: Layout, known: Shape | None, where: str) -> Shape:
    """(C, H, W), what is left open taken from the known images.

    Raises:
        UserError: there are none, or they contradict what is declared.
    """
    channels, height, width = sizes = _as_nchw(declared, layout)
    if channels is not None and height is not None and width is not None:
        return channels, height, width
    shown = tuple("any" if size is None else size for size in sizes)
    if known is None:
        raise UserError(
            f"'{where}' leaves its input's shape open: {_listed(shown)} (C, H, W)",
            hint="name the images with --dataset",
        )
    if any(size not in (None, own) for size, own in zip(sizes, known, strict=True)):
        raise UserError(
            f"'{where}' takes images of {_listed(shown)} (C, H, W), not of {known}",
            hint="name the images it was trained on with --dataset, or --image-size for an image folder",
        )
    return known


def _listed(sizes: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, sizes))})"
