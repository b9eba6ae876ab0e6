"""Ranges of activations for INT8: what ONNX Runtime's calibration finds on images."""

import tempfile
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

CALIBRATORS: dict[str, tuple[CalibrationMethod, dict[str, Any]]] = {
    "minmax": (CalibrationMethod.MinMax, {}),
    # Both ends by themselves; the default is one range around zero, which wastes half of it where values lean.
    "percentile": (CalibrationMethod.Percentile, {"symmetric": False, "percentile": 99.999}),
    # By default there are as many bins as levels, which leaves one range to choose from, that of minmax.
    "entropy": (CalibrationMethod.Entropy, {"num_bins": 512, "num_quantized_bins": 256}),
}
"""How ranges are found, and the options of ONNX Runtime's calibrator. A range holds all values, 99.999 % of them, or it
is the one whose histogram loses the least information (Migacz, GTC 2017)."""


def calibrate(prepared: Path, images: Images, method: str) -> TensorsData:
    """The range of every value of `prepared` on `images`.

    Args:
        prepared: the pre-processed fp32 file.
        images: `(N, C, H, W)`.
        method: row of CALIBRATORS.

    Raises:
        UserError: a value in the network is not finite.
    """
    kind, options = CALIBRATORS[method]
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            prepared,
            [*QLinearOpsRegistry, *QDQRegistry],
            str(Path(folder) / "augmented.onnx"),
            kind,
            extra_options=options,
        )
        for start in range(0, len(images), AT_A_TIME):
            # Given all images at once, it would keep every value of every image.
            calibrator.collect_data(_OneBatch(images[start : start + AT_A_TIME]))
        found = calibrator.compute_data()
    ends = {name: (data.lowest, data.highest) for name, data in found.items()}
    for name, both in ends.items():
        if not np.isfinite(both).all():
            raise UserError(
                f"INT8 has no range for '{name}': on training images it is not finite",
                hint="the network overflows; was its training stable?",
            )
    # Only the two ends of each range are kept, and no histogram.
    return TensorsData(CalibrationMethod.MinMax, ends)


class _OneBatch(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Images) -> None:
        self._waiting = [{INPUT: np.ascontiguousarray(images)}]

    def get_next(self) -> dict[str, Images] | None:
        return self._waiting.pop() if self._waiting else None
