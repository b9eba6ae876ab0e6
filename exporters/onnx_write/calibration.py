"""Ranges of activations for INT8: what ONNX Runtime's calibration finds on images."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from dgad_tk.artifacts.predictor import Images
from dgad_tk.common import UserError
from exporters.onnx_write.float32 import INPUT
from exporters.onnx_write.values import AT_A_TIME


@dataclass(frozen=True)
class Method:
    """How a range is found from the values that calibration saw.

    Attributes:
        calibrator: of ONNX Runtime.
        options: of this calibrator.
    """

    calibrator: CalibrationMethod
    options: dict[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "minmax": Method(CalibrationMethod.MinMax),
    # Both ends by themselves; the default is one range around zero, which wastes half of it where values lean.
    "percentile": Method(CalibrationMethod.Percentile, {"symmetric": False, "percentile": 99.999}),
    # By default there are as many bins as levels, which leaves one range to choose from, that of minmax.
    "entropy": Method(CalibrationMethod.Entropy, {"num_bins": 512, "num_quantized_bins": 256}),
}
"""All of the values, 99.999 % of them, or the range whose histogram loses the least information (Migacz, GTC 2017)."""


def calibrate(prepared: Path, images: Images, method: Method) -> TensorsData:
    """The range of every value of `prepared` on `images`.

    Args:
        prepared: the pre-processed fp32 file.
        images: `(N, C, H, W)`.

    Raises:
        UserError: a value in the network is not finite.
    """
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            prepared,
            [*QLinearOpsRegistry, *QDQRegistry],
            str(Path(folder) / "augmented.onnx"),
            method.calibrator,
            extra_options=method.options,
        )
        for start in range(0, len(images), AT_A_TIME):
            # Given all at once, it keeps every value of every image until the last.
            calibrator.collect_data(_OneBatch(images[start : start + AT_A_TIME]))
        found = calibrator.compute_data()
    ends = {name: (data.lowest, data.highest) for name, data in found.items()}
    for name, both in ends.items():
        if not np.isfinite(both).all():
            raise UserError(
                f"INT8 has no range for '{name}': on training images it is not finite",
                hint="the network overflows; was its training stable?",
            )
    # Whatever found them, two ends for each value and no histogram.
    return TensorsData(CalibrationMethod.MinMax, ends)


class _OneBatch(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Images) -> None:
        self._waiting = [{INPUT: np.ascontiguousarray(images)}]

    def get_next(self) -> dict[str, Images] | None:
        return self._waiting.pop() if self._waiting else None
