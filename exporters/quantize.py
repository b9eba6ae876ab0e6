"""INT8 ONNX files: onnxruntime's static quantisation, calibrated on training images, clean or adversarial.

QDQ format, weights int8 with a scale a channel, activations uint8: what ONNX Runtime's CPU kernels are made for on x86
with VNNI. Where a CPU has no VNNI its kernels add pairs of products in 16 bits and may saturate; `reduce_range`
quantises weights to 7 bits, which cannot.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from fnmatch import fnmatchcase
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.registry import QDQRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from dgad_tk.artifact import Artifact
from dgad_tk.common import UserError, lookup, nearest
from dgad_tk.predictor import Images
from exporters.adversarial import pgd_on
from exporters.calibration import FILE_METHOD, METHODS, Method, ranges_file
from exporters.exclusions import Exclusion, agreement, search
from exporters.float_logits import logits_are_clipped, unquantise_logits
from exporters.to_onnx import DEFAULT_OPSET, save_onnx, write_onnx

IMAGES = {
    "clean": "clean images",
    "adversarial": "adversarial images",
    "both": "images, half of them adversarial",
}
"""What can be calibrated on, in words."""

MIN_SAMPLES = 16
HELD_OUT = 512
"""Images that agreement is measured on: enough to see 0.2 %."""


def save_onnx_int8(
    model: nn.Module,
    artifact: Artifact,
    path: Path,
    *,
    images: Images | None,
    held_out: Images | None = None,
    opset: int = DEFAULT_OPSET,
    samples: int = 512,
    calibrate_on: str = "clean",
    method: str = "minmax",
    exclude: Sequence[str] = (),
    search_exclusions: bool = False,
    reduce_range: bool = False,
) -> dict[str, Any]:
    """Write `model` (eval mode) as an INT8 ONNX file. Input and logits stay float32.

    The ranges that calibration finds are kept in the cache folder, so that another choice of exclusions, or the same
    command again, does not run the images a second time.

    Args:
        images: training images `(N, C, H, W)` in [0, 1]; the first `samples` calibrate.
        held_out: images that agreement with fp32 is measured on; None takes those of `images` behind the first
            `samples`, and calibration's own where there are none.
        samples: number of images to calibrate on.
        calibrate_on: clean, adversarial (PGD on `model`, at the threat it was trained for), or both, half and half.
        method: row of METHODS.
        exclude: nodes to leave in float, by name or pattern (`node_conv2d*`).
        search_exclusions: also look for the few nodes whose exclusion restores agreement with fp32 on adversarial
            images.
        reduce_range: 7-bit weights, for CPUs without VNNI.

    Returns:
        What was done and what it cost: calibration, nodes left in float, agreement with the fp32 file.

    Raises:
        UserError: no images, too few, an unknown option or node, or nothing left to quantise.
    """
    chosen = lookup(METHODS, method, "calibration method")
    if calibrate_on not in IMAGES:
        raise UserError(f"unknown --calibrate-on '{calibrate_on}'", hint=nearest(calibrate_on, IMAGES))
    if images is None:
        raise UserError(
            "INT8 needs training images to calibrate on, and the dataset is not at hand",
            hint="put the dataset back where training found it",
        )
    if samples < MIN_SAMPLES or len(images) < samples:
        raise UserError(
            f"expected {MIN_SAMPLES} to {len(images)} calibration samples, got {samples}",
            hint="a few hundred are enough",
        )
    clean = images[:samples]
    if held_out is None:
        held_out = images[samples : samples + HELD_OUT] if len(images) > samples else clean
    calibration = _calibration_images(model, artifact, clean, calibrate_on)
    with tempfile.TemporaryDirectory() as folder, _quietly():
        plain, prepared = Path(folder) / "plain.onnx", Path(folder) / "prepared.onnx"
        save_onnx(model, artifact, plain, opset)
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        recipe = _Recipe(prepared, calibration, chosen, reduce_range)
        left_out = _left_out(exclude, recipe.nodes)
        adversarial = pgd_on(model, held_out, artifact)
        trials: list[Exclusion] = []
        if search_exclusions:
            trials = search(recipe.quantise, recipe.nodes, left_out, plain, adversarial)
            left_out = list(trials[-1].nodes)
        proto = recipe.quantise(left_out)
        on_clean = agreement(plain, proto, held_out)
        on_adversarial = agreement(plain, proto, adversarial)
        plain_size = plain.stat().st_size
    record = artifact.model_copy(
        update={
            "precision": "int8",
            "calibration": {
                "on": calibrate_on,
                "samples": samples,
                "method": method,
                "excluded": left_out,
                "reduce_range": reduce_range,
            },
        }
    )
    write_onnx(proto, record, path)
    return {
        "calibration": f"{samples} {IMAGES[calibrate_on]}, {method}",
        "size_bytes": path.stat().st_size,
        "fp32_size_bytes": plain_size,
        "excluded": left_out,
        "quantised_nodes": len(recipe.nodes) - len(left_out),
        "agreement": {"clean": on_clean.equal, "adversarial": on_adversarial.equal, "n": len(held_out)},
        "search": [trial.as_dict() for trial in trials],
    }


class _Recipe:
    """Everything about the quantisation but which nodes are left in float.

    Args:
        prepared: the pre-processed fp32 file.
        calibration: images `(N, C, H, W)`.
        method: how ranges are found.
        reduce_range: 7-bit weights.
    """

    def __init__(self, prepared: Path, calibration: Images, method: Method, reduce_range: bool) -> None:
        self._prepared = prepared
        self._calibration = calibration
        self._method = method
        self._reduce_range = reduce_range
        graph = onnx.load(str(prepared)).graph
        self.nodes = [node.name for node in graph.node if node.op_type in QDQRegistry and node.op_type in HEAVY]
        """Nodes that can be left in float: those that multiply. The others follow their neighbours."""
        self._clipped = logits_are_clipped(graph)

    @cached_property
    def _ranges(self) -> Path:
        """Of every value, whatever is excluded."""
        return ranges_file(self._prepared, self._calibration, self._method)

    def quantise(self, excluded: Sequence[str]) -> onnx.ModelProto:
        """The INT8 graph with the nodes `excluded` left in float."""
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "int8.onnx"
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
                calibrate_method=FILE_METHOD,
                calibration_cache_path=self._ranges,
            )
            proto = onnx.load(str(target))
        if not self._clipped:
            unquantise_logits(proto.graph)
        used = {node.domain for node in proto.graph.node}
        for entry in [each for each in proto.opset_import if each.domain and each.domain not in used]:
            proto.opset_import.remove(entry)  # pre-processing leaves every domain that ONNX Runtime knows
        return proto


HEAVY = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def _calibration_images(model: nn.Module, artifact: Artifact, clean: Images, calibrate_on: str) -> Images:
    if calibrate_on == "clean":
        return clean
    if calibrate_on == "adversarial":
        return pgd_on(model, clean, artifact)
    half = len(clean) // 2
    return np.concatenate([clean[:half], pgd_on(model, clean[half:], artifact)])


def _left_out(patterns: Sequence[str], nodes: Sequence[str]) -> list[str]:
    """The nodes that any of `patterns` names, in the graph's order.

    Raises:
        UserError: a pattern names none, or nothing is left to quantise.
    """
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
    """onnxruntime's quantiser prints its progress and logs to the root logger, advice that was followed among it."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logger.setLevel(level)
