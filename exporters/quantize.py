"""INT8 ONNX files: onnxruntime's static quantisation, calibrated on training images, clean or adversarial.

QDQ format, weights int8 with a scale a channel, activations uint8: what ONNX Runtime's CPU kernels are made for on x86
with VNNI. Where a CPU has no VNNI its kernels add pairs of products in 16 bits and may saturate; `reduce_range`
quantises weights to 7 bits, which cannot.
"""

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.registry import QDQRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from dgad_tk.artifact import Artifact
from dgad_tk.common import UserError, cache_dir, lookup, nearest, written_aside
from dgad_tk.predictor import Images
from exporters.adversarial import pgd_on
from exporters.exclusions import Agreement, Exclusion, agreement, search
from exporters.to_onnx import DEFAULT_OPSET, INPUT, save_onnx, write_onnx

CalibrateOn = Literal["clean", "adversarial", "both"]

METHODS: dict[str, CalibrationMethod] = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
"""How a range is found from the values that calibration saw: all of them, 99.999 % of them, or the range whose
histogram loses the least information (Migacz, GTC 2017)."""

BATCH = 64
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
        UserError: no images, too few, or an unknown option or node.
    """
    chosen = lookup(METHODS, method, "calibration method")
    if calibrate_on not in get_args(CalibrateOn):
        raise UserError(f"unknown --calibrate-on '{calibrate_on}'", hint=nearest(calibrate_on, get_args(CalibrateOn)))
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
        left_out = _matching(exclude, recipe.nodes)
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
        "calibration": f"{samples} {'' if calibrate_on == 'both' else calibrate_on + ' '}images"
        + (", half of them adversarial" if calibrate_on == "both" else "")
        + f", {method}",
        "size_bytes": path.stat().st_size,
        "fp32_size_bytes": plain_size,
        "excluded": left_out,
        "quantised_nodes": len(recipe.nodes) - len(left_out),
        "agreement": _findings(on_clean, on_adversarial, len(held_out)),
        "search": [trial.as_dict() for trial in trials],
    }


def _findings(on_clean: Agreement, on_adversarial: Agreement, n: int) -> dict[str, Any]:
    return {"clean": on_clean.equal, "adversarial": on_adversarial.equal, "n": n}


class _Recipe:
    """Everything about the quantisation but which nodes are left in float.

    Args:
        prepared: the pre-processed fp32 file.
        calibration: images `(N, C, H, W)`.
        method: how ranges are found.
        reduce_range: 7-bit weights.
    """

    def __init__(self, prepared: Path, calibration: Images, method: CalibrationMethod, reduce_range: bool) -> None:
        self._prepared = prepared
        self._calibration = calibration
        self._method = method
        self._reduce_range = reduce_range
        self._ranges = _ranges_file(prepared, calibration, method)
        graph = onnx.load(str(prepared)).graph
        self.nodes = [node.name for node in graph.node if node.op_type in QDQRegistry and node.op_type in HEAVY]
        """Nodes that can be left in float: those that multiply. The others follow their neighbours."""

    def quantise(self, excluded: Sequence[str]) -> onnx.ModelProto:
        """The INT8 graph with the nodes `excluded` left in float."""
        self._ranges.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "int8.onnx"
            # Calibration covers every tensor whatever is excluded. Another process may be writing the same ranges, so
            # ours are written aside and renamed.
            ranges = self._ranges if self._ranges.exists() else Path(folder) / "ranges.json"
            quantize_static(
                str(self._prepared),
                str(target),
                _Reader(self._calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=self._reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(excluded),
                calibrate_method=self._method,
                calibration_cache_path=ranges,
            )
            if ranges != self._ranges:
                with written_aside(self._ranges) as aside:
                    aside.write_bytes(ranges.read_bytes())
            proto = _float_logits(onnx.load(str(target)))
        used = {node.domain for node in proto.graph.node}
        for entry in [each for each in proto.opset_import if each.domain and each.domain not in used]:
            proto.opset_import.remove(entry)  # pre-processing leaves every domain that ONNX Runtime knows
        return proto


HEAVY = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def _float_logits(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Take away the last pair of quantiser and dequantiser, so that the logits leave as they were summed up.

    Eight bits for logits make ties between classes and steps in every margin, and save nothing: the layer before still
    multiplies integers.
    """
    graph = proto.graph
    name = graph.output[0].name
    makers = {output: node for node in graph.node for output in node.output}
    last = makers[name]
    before = makers.get(last.input[0])
    if last.op_type != "DequantizeLinear" or before is None or before.op_type != "QuantizeLinear":
        return proto
    source = makers.get(before.input[0])
    readers = [node for node in graph.node if before.input[0] in node.input]
    if source is None or source.op_type not in HEAVY or len(readers) > 1:
        return proto
    source.output[0] = name
    graph.node.remove(last)
    graph.node.remove(before)
    read = {wanted for node in graph.node for wanted in node.input}
    for unused in [each for each in graph.initializer if each.name not in read]:
        graph.initializer.remove(unused)
    return proto


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Images, a batch at a time."""

    def __init__(self, images: Images) -> None:
        self._batches: Iterator[Images] = iter(np.split(images, range(BATCH, len(images), BATCH)))

    def get_next(self) -> dict[str, Images] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: np.ascontiguousarray(batch)}


def _calibration_images(model: nn.Module, artifact: Artifact, clean: Images, calibrate_on: str) -> Images:
    if calibrate_on == "clean":
        return clean
    if calibrate_on == "adversarial":
        return pgd_on(model, clean, artifact)
    half = len(clean) // 2
    return np.concatenate([clean[:half], pgd_on(model, clean[half:], artifact)])


def _ranges_file(prepared: Path, images: Images, method: CalibrationMethod) -> Path:
    """Where the ranges are kept, named after everything that they depend on."""
    proto = onnx.load(str(prepared))
    del proto.metadata_props[:]  # a record with another date is no other network
    digest = hashlib.sha256(onnxruntime.__version__.encode())
    for part in (method.name.encode(), str(images.shape).encode(), images.tobytes(), proto.SerializeToString()):
        digest.update(part)
    return cache_dir() / "calibration" / f"{digest.hexdigest()[:32]}.json"


def _matching(patterns: Sequence[str], nodes: Sequence[str]) -> list[str]:
    """The nodes that any of `patterns` names, in the graph's order.

    Raises:
        UserError: a pattern names none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in nodes):
            raise UserError(
                f"--exclude '{pattern}' names no node that is quantised",
                hint=nearest(pattern, nodes) if nodes else "the network has none",
            )
    return [name for name in nodes if any(fnmatchcase(name, pattern) for pattern in patterns)]


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
