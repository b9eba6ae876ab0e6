"""How images are changed for a model file that does not take float32 `(N, C, H, W)` in [0, 1]."""

import math
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from dgad_tk.artifacts.record import Artifact
from dgad_tk.common import UserError
from dgad_tk.models import Normalize

Layout = Literal["nchw", "nhwc"]
ChannelOrder = Literal["rgb", "bgr"]
UNIT_RANGE = (0.0, 1.0)


@dataclass(frozen=True)
class Interface:
    """What a model file's input and output look like. A `Predictor` hides this: its callers use images in [0, 1].

    Attributes:
        layout: order of the axes of the input, or of the pixels of a flat input. None to tell it from the shape.
        mean, std: `(x - mean) / std` is computed after `input_range`, in its units. One number for all channels or one
            per channel, in the file's order of channels; empty for none.
        input_range: the values that 0 and 1 become.
        logits_output: name of the output with the logits; None to choose it among several by their shapes.
        channel_order: of a file that takes three channels; "bgr" is the order of OpenCV and Caffe.

    Raises:
        UserError: numbers that cannot be a normalisation or a range.
    """

    layout: Layout | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    input_range: tuple[float, float] = UNIT_RANGE
    logits_output: str | None = None
    channel_order: ChannelOrder = "rgb"

    def __post_init__(self) -> None:
        low, high = self.input_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"--input-range must rise from one number to another, got {low:g} to {high:g}", hint=RANGES)
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise UserError(f"--std must be above 0, got {_list(self.std)}", hint="for example --std 0.229,0.224,0.225")
        if not all(low <= value <= high for value in self.mean):
            raise UserError(
                f"--mean must lie in the range of the input, {low:g} to {high:g}, got {_list(self.mean)}",
                hint="it is in units of --input-range, as --input-range 0-255 --mean 123.7,116.3,103.5",
            )

    @property
    def changes_images(self) -> bool:
        """Whether channels change places or values change; the order of axes is not meant."""
        return bool(self.mean or self.std) or self.input_range != UNIT_RANGE or self.channel_order != "rgb"

    @property
    def note(self) -> str:
        """A sentence on how images change; empty where they do not."""
        low, high = self.input_range
        parts = ["put in the order blue, green, red"] if self.channel_order == "bgr" else []
        parts += [f"brought to {low:g} to {high:g}"] if self.input_range != UNIT_RANGE else []
        parts += [f"less {_list(self.mean)}"] if self.mean else []
        parts += [f"over {_list(self.std)}"] if self.std else []
        return f"for the file, pixels are {', '.join(parts)}" if parts else ""

    def preprocessing(self, channels: int) -> nn.Module:
        """A module that brings images `(N, C, H, W)` in [0, 1] to the file's channel order, range and normalisation.

        Raises:
            UserError: there are more means than channels, say, or no three channels to put in another order.
        """
        if self.channel_order == "bgr" and channels != 3:
            raise UserError(
                f"--channel-order bgr needs images of 3 channels, these have {channels}", hint="leave it out for them"
            )
        steps: OrderedDict[str, nn.Module] = OrderedDict()
        for flag, values in (("--mean", self.mean), ("--std", self.std)):
            if len(values) not in (0, 1, channels):
                raise UserError(
                    f"{flag} gives {len(values)} values, the images have {channels} channels",
                    hint="one number for all channels, or one per channel",
                )
        if self.channel_order == "bgr":
            steps["bgr"] = _Reversed()
        if self.input_range != UNIT_RANGE:
            steps["range"] = _Rescale(*self.input_range)
        if self.mean or self.std:
            steps["normalize"] = Normalize(self.mean or (0.0,), self.std or (1.0,))
        return nn.Sequential(steps)

    def check_unneeded(self, artifact: Artifact | None, where: str) -> None:
        """Raise UserError where a file of this package, which takes images as they are, is to get other ones."""
        if artifact is not None and (self.changes_images or self.layout == "nhwc"):
            raise UserError(
                f"'{where}' carries a dgad record: it takes images (N, C, H, W) in [0, 1] and normalises them itself",
                hint="leave out --mean, --std, --input-range, --channel-order and --layout for it",
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, for results."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


AS_IS = Interface()
RANGES = "for example --input-range 0-255 or --input-range -1-1"


class _Reversed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)


class _Rescale(nn.Module):
    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.width = low, high - low

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * self.width
        return scaled + self.low if self.low else scaled


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
