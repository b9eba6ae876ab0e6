"""How an ONNX file's input is read as images: its axes are told by their sizes and by the known images.

(N, 3, 224, 224)    channels first          (N, 150528)       flat, for known images of (3, 224, 224)
(N, 224, 224, 3)    channels last           (224, 224, 3)     one image, without an axis for the batch
(1, 3, 224, 224)    one image at a time     (N, 3, H, W)      of the size of the known images
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import ModelProto

from dgad_tk.artifacts.predictor import OpenShapeError, PartlyKnown
from dgad_tk.artifacts.preprocessing import Interface, Layout
from dgad_tk.common import UserError
from exporters.onnx_open.image_input import TYPES, ImageInput, Shape
from exporters.onnx_open.quantised_input import ENDS, eight_bits

CHANNELS = (1, 3, 4)
LAYOUTS: tuple[Layout, ...] = ("nchw", "nhwc")
EXPECTED = "expected one input (N, C, H, W) or (N, H, W, C) of floats or 8-bit integers"


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
        OpenShapeError: the shape leaves something open that `known` would settle.
        UserError: several inputs, no images, or a shape that can be read in two ways.
    """
    found = ", ".join(f"{entry.name}: {entry.type} {_declared(model, entry)}" for entry in inputs) or "no input"
    if len(inputs) != 1 or inputs[0].type not in TYPES or (_has_rank(model, inputs[0].name) and not inputs[0].shape):
        raise UserError(f"'{where}' is not an image classifier: it takes {found}", hint=EXPECTED)
    (entry,) = inputs
    base = ImageInput(entry.name, entry.type, known or (0, 0, 0), None, None, interface)
    kind = entry.type.removeprefix("tensor(").removesuffix(")")
    if kind in ENDS:
        interface, levels, doubt = eight_bits(interface, kind, model.graph, entry.name, where)
        base = replace(base, interface=interface, levels=levels, remarks=(doubt,) if doubt else ())
    ways = _of_any_rank(base, known, where) if not entry.shape else [_of_shape(base, entry.shape, known, found, where)]
    for image in ways:
        image.feed()  # mean and std must fit the channels
    return ways


def _of_any_rank(base: ImageInput, known: Shape | None, where: str) -> list[ImageInput]:
    """Readings of an input that says nothing of its axes, which the known images then say."""
    if known is None:
        raise OpenShapeError(
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
    alone = known is not None and _lacks_batch_axis(sizes, known)
    batch, axes = (1, sizes) if alone else (sizes[0], sizes[1:])
    base, asked = replace(base, batch=batch, has_batch_axis=not alone), base.interface.layout
    if len(axes) == 3 and not _is_flat(axes, known):
        layout = asked or _which_layout(axes, known, where)
        shape = _in_three_axes(axes, layout, known, where)
        return replace(base, shape=shape, interface=replace(base.interface, layout=layout))
    hint = f"{EXPECTED}, with an axis for the batch"
    if known is None:
        known_axes = [size for size in axes if size is not None]
        raise OpenShapeError(
            f"'{where}' is not an image classifier: it takes {found}",
            hint=f"{hint}; if it takes flat images, or one without that axis, name them with --dataset",
            declared=_said_of(sizes, asked),
            values=math.prod(known_axes) if known_axes and len(known_axes) == len(axes) else None,
        )
    if not axes or not _holds(axes, known):
        raise UserError(
            f"'{where}' is not an image classifier for images of {known}: it takes {found}",
            hint=f"{hint}; --image-size sets the size of an image folder",
        )
    if known[0] > 1 and asked is None:
        what = f"flat images {list(declared)}" + (" without an axis for the batch" if alone else "")
        raise UserError(
            f"'{where}' takes {what}, and their pixels may be in the order of (C, H, W) or of (H, W, C)",
            hint="--layout nchw or --layout nhwc",
        )
    flat = tuple(-1 if size is None else size for size in axes)
    return replace(base, shape=known, flat=flat, interface=replace(base.interface, layout=asked or "nchw"))


def _has_rank(model: ModelProto, name: str) -> bool:
    """Whether a graph says how many axes its input has; a session gives no shape for that and for a single number."""
    return any(each.name == name and each.type.tensor_type.HasField("shape") for each in model.graph.input)


def _declared(model: ModelProto, entry: Any) -> str:
    return str(entry.shape) if _has_rank(model, entry.name) else "of any rank"


def _lacks_batch_axis(sizes: Sequence[int | None], known: Shape) -> bool:
    """Whether an input of these sizes, None for open ones, is one of the known images, with no axis in front."""
    rest = sizes[1:]
    if rest and (len(rest) == 3 or _holds(rest, known)):
        return False
    return _holds(sizes, known) or bool(_fitting_layouts(sizes, known))


def _fitting_layouts(axes: Sequence[int | None], known: Shape) -> list[Layout]:
    """The orders in which axes, None for open ones, may be the three of the known images."""
    if len(axes) != 3:
        return []
    read = {layout: zip(_as_nchw(axes, layout), known, strict=True) for layout in LAYOUTS}
    return [layout for layout, pairs in read.items() if all(size in (None, own) for size, own in pairs)]


def _which_layout(declared: Sequence[int | None], known: Shape | None, where: str) -> Layout:
    """Which of three axes are the channels."""
    fitting = _fitting_layouts(declared, known) if known else []
    if len(fitting) == 1:
        return fitting[0]
    first, middle, last = declared
    if last not in CHANNELS:
        return "nchw"
    if first not in CHANNELS:
        return "nhwc"
    # Both could count channels: as a rule images are square.
    if (middle == last) != (first == middle):
        return "nchw" if middle == last else "nhwc"
    message = f"'{where}' takes images of {tuple(declared)}: the channels may be the first of these or the last"
    hint = "--layout nchw or --layout nhwc"
    raise UserError(message, hint) if known else OpenShapeError(message, hint)


def _said_of(axes: Sequence[int | None], asked: Layout | None) -> PartlyKnown:
    """What three axes, None for open ones, say of (C, H, W); nothing where they may be in either order."""
    ways = [_as_nchw(axes, layout) for layout in LAYOUTS if asked in (None, layout)] if len(axes) == 3 else []
    sure, possible = ([way for way in ways if way[0] in allowed] for allowed in (CHANNELS, (None, *CHANNELS)))
    fitting = sure or possible
    return fitting[0] if len(fitting) == 1 else (None, None, None)


def _as_nchw(declared: Sequence[int | None], layout: Layout) -> PartlyKnown:
    first, middle, last = declared
    return (first, middle, last) if layout == "nchw" else (last, first, middle)


def _is_flat(declared: Sequence[int | None], known: Shape | None) -> bool:
    """Whether three axes are one of pixels and two of size 1, and the known images are not of that shape."""
    if known is None or sum(size == 1 for size in declared) < 2:
        return False
    return _holds(declared, known) and not _fitting_layouts(declared, known)


def _holds(declared: Sequence[int | None], known: Shape) -> bool:
    """Whether these sizes hold the pixels of an image; one may be open."""
    pixels, sized = int(np.prod(known)), int(np.prod([size for size in declared if size is not None]))
    left_open = sum(size is None for size in declared)
    return sized == pixels if not left_open else left_open == 1 and pixels % sized == 0


def _in_three_axes(declared: Sequence[int | None], layout: Layout, known: Shape | None, where: str) -> Shape:
    """(C, H, W), what is left open taken from the known images."""
    channels, height, width = sizes = _as_nchw(declared, layout)
    if channels is not None and height is not None and width is not None:
        return channels, height, width
    shown = f"({', '.join('any' if size is None else str(size) for size in sizes)}) (C, H, W)"
    if known is None:
        hint = "name the images with --dataset"
        said = _said_of(declared, layout)
        raise OpenShapeError(f"'{where}' leaves its input's shape open: {shown}", hint, declared=said)
    if layout not in _fitting_layouts(declared, known):
        raise UserError(
            f"'{where}' takes images of {shown}, not of {known}",
            hint="name the images it was trained on with --dataset, or --image-size for an image folder",
        )
    return known
