"""How a model file from elsewhere wants its images, where that differs from the contract of this package."""

import math
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from dgad_tk.artifacts.record import Artifact
from dgad_tk.common import UserError
from dgad_tk.models import Normalize

Layout = Literal["nchw", "nhwc"]
UNIT_RANGE = (0.0, 1.0)


@dataclass(frozen=True)
class Interface:
    """What has to happen to images `(N, C, H, W)` in [0, 1] before a model file takes them, and what is read off it.

    Whoever calls a `Predictor` never sees this: images stay in [0, 1] and eps a fraction of 1.

    Attributes:
        layout: order of the axes of the file's input; of an input that is flat, the order its pixels are read in. None
            to tell it from the shape.
        mean, std: normalisation that the file expects outside, `(x - mean) / std` after the range, and so in units of
            it: one number for all channels or one per channel; empty for none.
        input_range: what 0 and 1 become.
        logits_output: name of the output that holds the logits, where a file has several. None to tell it from them.

    Raises:
        UserError: numbers that cannot be a normalisation or a range.
    """

    layout: Layout | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    input_range: tuple[float, float] = UNIT_RANGE
    logits_output: str | None = None

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
    def changes_values(self) -> bool:
        """Whether pixels get other values, and not just another order."""
        return bool(self.mean or self.std) or self.input_range != UNIT_RANGE

    @property
    def note(self) -> str:
        """What is done to pixels, in a sentence; empty for nothing."""
        low, high = self.input_range
        parts = [f"brought to {low:g} to {high:g}"] if self.input_range != UNIT_RANGE else []
        parts += [f"less {_list(self.mean)}"] if self.mean else []
        parts += [f"over {_list(self.std)}"] if self.std else []
        return f"for the file, pixels are {', '.join(parts)}" if parts else ""

    def preprocessing(self, channels: int) -> nn.Module:
        """Maps images `(N, C, H, W)` in [0, 1] to the same, with range and normalisation of the file.

        Raises:
            UserError: mean or std are for another number of channels.
        """
        steps: OrderedDict[str, nn.Module] = OrderedDict()
        for flag, values in (("--mean", self.mean), ("--std", self.std)):
            if len(values) not in (0, 1, channels):
                raise UserError(
                    f"{flag} gives {len(values)} values, the images have {channels} channels",
                    hint="one number for all channels, or one per channel",
                )
        if self.input_range != UNIT_RANGE:
            steps["range"] = _Rescale(*self.input_range)
        if self.mean or self.std:
            steps["normalize"] = Normalize(self.mean or (0.0,), self.std or (1.0,))
        return nn.Sequential(steps)

    def check_record(self, artifact: Artifact | None, where: str) -> None:
        """Raises:
        UserError: the file says itself that it takes images as they are, and this says otherwise.
        """
        if artifact is not None and (self.changes_values or self.layout == "nhwc"):
            raise UserError(
                f"'{where}' carries a dgad record: it takes images (N, C, H, W) in [0, 1] and normalises them itself",
                hint="leave out --mean, --std, --input-range and --layout for it",
            )

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for results and for what stored results are kept under."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


AS_IS = Interface()
RANGES = "for example --input-range 0-255 or --input-range -1-1"


class _Rescale(nn.Module):
    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.width = low, high - low

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * self.width
        return scaled + self.low if self.low else scaled


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
