"""Flags that say how a model file from elsewhere wants its images."""

import re
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cli.flags.values import numbers
from dgad_tk.common import UserError, lookup

if TYPE_CHECKING:
    from dgad_tk.artifacts.preprocessing import Interface

LAYOUTS = {"nchw": "nchw", "nhwc": "nhwc"}
CHANNEL_ORDERS = {"rgb": "rgb", "bgr": "bgr"}

Mean = Annotated[
    str | None, typer.Option(help="What the file wants subtracted: one number, or one per channel. [nothing]")
]
Std = Annotated[str | None, typer.Option(help="What the file wants the rest divided by. [1]")]
InputRange = Annotated[
    str | None, typer.Option(help="Range of the file's pixels before that: 0-255 or -1-1. [0-1, as eps]")
]
Layout = Annotated[str | None, typer.Option(help="Order of the input's axes: nchw or nhwc. [told from its shape]")]
ChannelOrder = Annotated[
    str | None, typer.Option(help="Order of the input's channels: rgb, or bgr as of OpenCV and Caffe. [rgb]")
]
LogitsOutput = Annotated[str | None, typer.Option(help="Output that holds the logits. [told from the outputs]")]


def interface_of(
    mean: str | None = None,
    std: str | None = None,
    input_range: str | None = None,
    layout: str | None = None,
    logits_output: str | None = None,
    channel_order: str | None = None,
) -> "Interface":
    """The interface that these flags describe.

    Raises:
        UserError: one of them cannot be read, or they contradict each other.
    """
    from dgad_tk.artifacts.preprocessing import UNIT_RANGE, Interface

    return Interface(
        layout=cast(Any, lookup(LAYOUTS, layout.lower(), "layout")) if layout is not None else None,
        mean=tuple(numbers(mean, "--mean")) if mean is not None else (),
        std=tuple(numbers(std, "--std")) if std is not None else (),
        input_range=_range(input_range) if input_range is not None else UNIT_RANGE,
        logits_output=logits_output,
        channel_order=cast(Any, lookup(CHANNEL_ORDERS, channel_order.lower(), "channel order"))
        if channel_order is not None
        else "rgb",
    )


def _range(text: str) -> tuple[float, float]:
    """`0-255`, `-1-1` or `-1,1` as two numbers."""
    number = r"\s*([+-]?\d+\.?\d*|[+-]?\.\d+)\s*"
    found = re.fullmatch(f"{number}[-,]{number}", text)
    if found is None:
        raise UserError(
            f"--input-range must be two numbers such as 0-255, got '{text}'",
            hint="what 0 and 1 become for the file, for example --input-range -1-1",
        )
    return cast(tuple[float, float], tuple(float(part) for part in found.groups()))
