"""INT8 ONNX files: onnxruntime's static quantisation, calibrated on training images, clean or adversarial.

The format is QDQ, weights are int8 with a scale per channel, and activations are uint8: ONNX Runtime's CPU kernels for
x86 with VNNI are made for that. On a CPU without VNNI, the kernels add pairs of products in 16 bits, which may
saturate. With `reduce_range` weights have 7 bits, and these sums cannot saturate.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import save_tensors_data
from onnxruntime.quantization.registry import QDQRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from dgad_tk.artifacts.predictor import Images
from dgad_tk.artifacts.record import Artifact, threat_of
from dgad_tk.ascent.pgd import pgd_on
from dgad_tk.common import UserError, lookup, nearest
from exporters.onnx_write.calibration import CALIBRATORS, calibrate
from exporters.onnx_write.exclusions import agreement, find_exclusions, logits_of
from exporters.onnx_write.float32 import DEFAULT_OPSET, Report, save_onnx, write_onnx
from exporters.onnx_write.float_logits import logits_are_clipped, unquantise_logits

IMAGES = {
    "clean": ("clean images", 0.0),
    "adversarial": ("adversarial images", 1.0),
    "both": ("images, half of them adversarial", 0.5),
}
"""What can be calibrated on: in words, and the share of the images that PGD changes."""

MIN_SAMPLES = 16
JUDGED = 512
USUAL_SAMPLES = 512
"""Images on which agreement with fp32 is measured: enough to see 0.2 %."""
HEAVY = {"Conv", "ConvTranspose", "Gemm", "MatMul"} & set(QDQRegistry)
"""Operators that multiply. Each is quantised or left in float; the others follow their neighbours."""


@dataclass(frozen=True)
class Int8:
    """How a network is quantised.

    Attributes:
        calibration_samples: number of images to calibrate on; None for USUAL_SAMPLES, or half of the images where there
            are no more than these.
        calibration_method: row of CALIBRATORS.
        calibrate_on: clean, adversarial (PGD on the network, at the threat it was trained for), or both, half and half.
        exclude: nodes to leave in float, by name or pattern (`node_conv2d*`).
        search_exclusions: also look for the few nodes whose exclusion restores agreement with fp32 on adversarial
            images.
        reduce_range: 7-bit weights, for CPUs without VNNI.

    Raises:
        UserError: an unknown method or choice of images, or too few samples.
    """

    calibration_samples: int | None = None
    calibration_method: str = "minmax"
    calibrate_on: str = "clean"
    exclude: Sequence[str] = ()
    search_exclusions: bool = False
    reduce_range: bool = False

    def __post_init__(self) -> None:
        lookup(CALIBRATORS, self.calibration_method, "calibration method")
        lookup(IMAGES, self.calibrate_on, "--calibrate-on")
        if self.calibration_samples is not None and self.calibration_samples < MIN_SAMPLES:
            raise UserError(
                f"--calibration-samples must be at least {MIN_SAMPLES}, got {self.calibration_samples}",
                hint="a few hundred are enough",
            )


def save_onnx_int8(
    model: nn.Module,
    artifact: Artifact,
    path: Path,
    *,
    images: Images,
    int8: Int8 | None = None,
    opset: int = DEFAULT_OPSET,
) -> Report:
    """Write `model` (eval mode) as an INT8 ONNX file. Input and logits stay float32.

    Args:
        images: training images `(N, C, H, W)` in [0, 1]. The first ones calibrate. Agreement with fp32 is measured on
            those behind them, or on the same ones if there are no more.
        int8: how it is quantised; None for the defaults.

    Returns:
        What was done and what it cost: calibration, nodes left in float, agreement with the fp32 file.

    Raises:
        UserError: too few images, an unknown node, or nothing left to quantise.
    """
    int8 = int8 or Int8()
    usual = USUAL_SAMPLES if len(images) > USUAL_SAMPLES else max(MIN_SAMPLES, len(images) // 2)
    samples = int8.calibration_samples or usual
    if len(images) < samples:
        raise UserError(
            f"--calibration-samples must be {MIN_SAMPLES} to {len(images)}, got {samples}",
            hint="a few hundred are enough",
        )
    clean = images[:samples]
    held_out = images[samples : samples + JUDGED] if len(images) > samples else clean
    words, share = IMAGES[int8.calibrate_on]
    kept, threat = int(samples * (1 - share)), threat_of(artifact)
    calibration = np.concatenate([clean[:kept], pgd_on(model, clean[kept:], threat)]) if share else clean
    with tempfile.TemporaryDirectory() as folder, _quietly():
        plain, prepared = Path(folder) / "plain.onnx", Path(folder) / "prepared.onnx"
        save_onnx(model, artifact, plain, opset)
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        fp32, fp32_size = onnx.load(str(plain)), plain.stat().st_size
        nodes = [node.name for node in onnx.load(str(prepared)).graph.node if node.op_type in HEAVY]
        left_out = _left_out(int8.exclude, nodes)
        quantiser = _Quantiser(prepared, calibration, int8)
        adversarial = pgd_on(model, held_out, threat)
        on_clean, on_adversarial = logits_of(fp32, held_out), logits_of(fp32, adversarial)
        tried = []
        if int8.search_exclusions:
            tried = find_exclusions(quantiser.quantise, nodes, left_out, on_adversarial, adversarial)
            left_out = list(tried[-1].nodes)
        proto = quantiser.quantise(left_out)
    record = artifact.model_copy(
        update={
            "precision": "int8",
            "calibration": {
                "on": int8.calibrate_on,
                "samples": samples,
                "method": int8.calibration_method,
                "excluded": left_out,
                "reduce_range": int8.reduce_range,
            },
        }
    )
    write_onnx(proto, record, path)
    return Report(
        {
            "calibration": f"{samples} {words}, {int8.calibration_method}",
            "size_bytes": path.stat().st_size,
            "fp32_size_bytes": fp32_size,
            "excluded": left_out,
            "quantised_nodes": len(nodes) - len(left_out),
            "agreement": {
                "clean": agreement(on_clean, logits_of(proto, held_out)),
                "adversarial": agreement(on_adversarial, logits_of(proto, adversarial)),
                "n": len(held_out),
            },
            "search": [{"excluded": list(each.nodes), "adversarial_agreement": each.agreement} for each in tried],
        }
    )


class _Quantiser:
    """Quantises one network, whichever nodes are left in float. Files are kept beside `prepared`, the fp32 graph."""

    def __init__(self, prepared: Path, calibration: Images, int8: Int8) -> None:
        self._prepared, self._reduce_range = prepared, int8.reduce_range
        self._clipped = logits_are_clipped(onnx.load(str(prepared)).graph)
        self._ranges = prepared.with_name("ranges.json")
        save_tensors_data(calibrate(prepared, calibration, int8.calibration_method), self._ranges)

    def quantise(self, excluded: Sequence[str]) -> onnx.ModelProto:
        """The INT8 graph with the nodes `excluded` left in float."""
        target = self._prepared.with_name("int8.onnx")
        quantize_static(
            str(self._prepared),
            str(target),
            None,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=self._reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(excluded),
            calibrate_method=CalibrationMethod.MinMax,  # as the ranges say, whichever method found them
            calibration_cache_path=self._ranges,
        )
        proto = onnx.load(str(target))
        if not self._clipped:
            unquantise_logits(proto.graph)
        used = {node.domain for node in proto.graph.node}
        for entry in [each for each in proto.opset_import if each.domain and each.domain not in used]:
            proto.opset_import.remove(entry)  # pre-processing leaves every domain that ONNX Runtime knows
        return proto


def _left_out(patterns: Sequence[str], nodes: Sequence[str]) -> list[str]:
    """The nodes that any of `patterns` names, in the graph's order; an error if nothing is left to quantise."""
    if not nodes:
        raise UserError(
            "INT8 has nothing to quantise: the network has none of " + ", ".join(sorted(HEAVY)),
            hint="--format onnx writes it in float32",
        )
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in nodes):
            raise UserError(f"--exclude '{pattern}' names no node that is quantised", hint=nearest(pattern, nodes))
    found = [name for name in nodes if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if len(found) == len(nodes):
        raise UserError("--exclude leaves no node to quantise", hint="--format onnx writes all of them in float32")
    return found


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence onnxruntime's quantiser, which prints its progress and logs advice to the root logger."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logger.setLevel(level)
