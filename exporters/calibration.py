"""Ranges of activations for INT8: what ONNX Runtime's calibration finds on images, kept in the cache folder."""

import hashlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator, load_tensors_data, save_tensors_data
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from dgad_tk.common import UserError, cache_dir, written_aside
from dgad_tk.predictor import Images
from exporters.to_onnx import INPUT

BATCH = 64
FILE_METHOD = CalibrationMethod.MinMax
"""What the kept files name as their method, whichever found the ranges: they hold two ends a value and no histogram."""


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


def ranges_file(prepared: Path, images: Images, method: Method) -> Path:
    """The file of the ranges that `prepared` has on `images`, in ONNX Runtime's format; made where it is not kept yet.

    Args:
        prepared: the pre-processed fp32 file.
        images: `(N, C, H, W)`.

    Raises:
        UserError: a value in the network is not finite.
    """
    path = _path(prepared, images, method)
    if not _is_whole(path):
        found = _calibrate(prepared, images, method)
        with written_aside(path) as aside:  # another process may be writing the same ranges
            save_tensors_data(found, aside)
    return path


def _calibrate(prepared: Path, images: Images, method: Method) -> TensorsData:
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            prepared,
            [*QLinearOpsRegistry, *QDQRegistry],
            str(Path(folder) / "augmented.onnx"),
            method.calibrator,
            extra_options=method.options,
        )
        for start in range(0, len(images), BATCH):
            # Given all at once, it keeps every value of every image until the last.
            calibrator.collect_data(_OneBatch(images[start : start + BATCH]))
        found = calibrator.compute_data()
    ends = {name: (data.lowest, data.highest) for name, data in found.items()}
    for name, both in ends.items():
        if not np.isfinite(both).all():
            raise UserError(
                f"INT8 has no range for '{name}': on training images it is not finite",
                hint="the network overflows; was its training stable?",
            )
    return TensorsData(FILE_METHOD, ends)


class _OneBatch(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Images) -> None:
        self._waiting = [{INPUT: np.ascontiguousarray(images)}]

    def get_next(self) -> dict[str, Images] | None:
        return self._waiting.pop() if self._waiting else None


def _is_whole(path: Path) -> bool:
    """Whether `path` holds ranges: not when it is missing, cut short or edited into something else."""
    if not path.is_file():
        return False
    try:
        kept = load_tensors_data(path)
        return kept.calibration_method == FILE_METHOD and all(
            np.isfinite(data.range_value).all() and data.lowest <= data.highest for data in kept.values()
        )
    except (ValueError, TypeError, KeyError, AttributeError):  # whatever damaged JSON leads to
        return False


def _path(prepared: Path, images: Images, method: Method) -> Path:
    """Where the ranges are kept, named after everything that they depend on."""
    proto = onnx.load(str(prepared))
    del proto.metadata_props[:]  # a record with another date is no other network
    digest = hashlib.sha256()
    for part in (onnxruntime.__version__, repr(method), str(images.shape)):
        digest.update(part.encode())
    digest.update(images.tobytes())
    digest.update(proto.SerializeToString(deterministic=True))
    return cache_dir() / "calibration" / f"{digest.hexdigest()[:32]}.json"
