"""ONNX files in half precision: the fp32 graph with weights and activations in float16."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from dgad_tk.artifacts.predictor import Images
from dgad_tk.artifacts.record import Artifact
from exporters.onnx_write.float32 import DEFAULT_OPSET, Report, to_onnx, write_onnx
from exporters.onnx_write.half_range import LARGEST, activation_peaks, judge_range


def save_onnx_fp16(
    model: nn.Module,
    artifact: Artifact,
    path: Path,
    *,
    probes: Mapping[str, Images],
    opset: int = DEFAULT_OPSET,
) -> Report:
    """Write `model` (eval mode) as an ONNX file that computes in float16. Input and logits stay float32.

    Weights too large for float16 become its largest number; the comparison with the source tells whether that
    matters.

    Args:
        probes: images `(N, C, H, W)` by name, on which the float32 graph shows whether its values fit float16.
        opset: as for `save_onnx`.

    Returns:
        The largest value on `probes`, where it is, and whether it fits float16.

    Raises:
        UserError: an opset that the exporter cannot write.
    """
    record = artifact.model_copy(update={"precision": "float16"})
    single = to_onnx(model, artifact, opset)
    peaks = activation_peaks(single, probes)
    failures, warnings = judge_range(peaks)
    write_onnx(to_float16(single), record, path)
    return Report({"largest_activation": str(max(peaks, key=lambda peak: peak.value))}, failures, warnings)


def to_float16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The half-precision version of a graph; inputs and outputs stay float32. `proto` is changed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*float32 number.*will be truncated")
        half = convert_float_to_float16(proto, max_finite_val=LARGEST, keep_io_types=True)
    from onnxscript import ir  # takes half a second to import, and opening files does not need it

    # The converter puts its casts last, even those that the first node reads.
    model = ir.from_proto(half)
    model.graph.sort()
    sorted_half: onnx.ModelProto = ir.to_proto(model)
    return sorted_half
