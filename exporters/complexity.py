"""What a network costs by counting: parameters, and the multiply-adds of one image.

The convention is the one of the papers and of torchvision's tables: a multiplication and the addition after it are one,
and only convolutions and matrix products count. `torch.utils.flop_counter`, which counts the torch formats here, calls
the same thing two operations.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import NodeProto, TensorProto, helper
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dgad_tk.predictor import Images
from exporters.onnx_parts import inlined
from exporters.runtime_memory import bound_memory

Shape = tuple[int, ...]
LIMIT = 2**31
"""Bytes of the largest graph that protobuf serialises."""

_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
"""Which input holds the weights `(C_out, C_in / groups, *kernel)`."""
_PRODUCTS = {
    *("Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul", "MatMulInteger", "QLinearMatMul"),
    *("DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
}
_COUNTED = {*_CONVOLUTIONS, *_PRODUCTS, "ConvTranspose", "Einsum", "Attention"}
_NOT_COUNTED = {
    *("If", "Loop", "Scan", "SequenceMap", "LSTM", "GRU", "RNN", "MultiHeadAttention", "QAttention"),
    *("GroupQueryAttention", "PackedAttention", "MatMulNBits", "DeformConv", "ConvTransposeWithDynamicPads"),
    "com.microsoft.Attention",
}
"""Operators that multiply in ways their shapes do not tell. A graph with one gets no count rather than a low one."""

_QUANTISED = {
    "DequantizeLinear": (0,),
    "ConvInteger": (1,),
    "DynamicQuantizeMatMul": (1, 4),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1, 6),
    "QGemm": (0, 3, 6),
    "QLinearAdd": (0, 3),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
    "QLinearMul": (0, 3),
}
"""Operators of quantised numbers: which of their inputs are these numbers; the others are scales and zero points."""
_NOT_WEIGHTS = {"BatchNormalization": (3, 4), "QuantizeLinear": (1, 2), "Resize": (1, 2), "Upsample": (1,)}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True)
class Complexity:
    """Counts of one network.

    Attributes:
        parameters: numbers that were trained, however they are stored: a quantised weight is one, its scale and zero
            point are none. BatchNorm counts as the file has it: scale and shift where it stands, nothing more than a
            bias where it is folded, its running statistics never. Constants of an ONNX graph count when they are float
            tensors of rank 1 or more, since a graph does not tell a parameter from a buffer such as the
            normalisation's mean.
        weights: type in which most of them are stored: "float32", "float16", "int8", ...
        multiply_adds: of one image, in convolutions and matrix products, biases left out; None where a graph has loops
            or operators whose count its shapes do not tell.
    """

    parameters: int
    weights: str
    multiply_adds: int | None


def module_complexity(module: nn.Module, sample: Shape) -> Complexity:
    """Counts of a torch module, eager, TorchScript or exported, that takes float32 `(N, *sample)`."""
    stored = {id(parameter): parameter for parameter in module.parameters()}.values()
    types: Counter[str] = Counter()
    for parameter in stored:
        types[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    device = next((parameter.device for parameter in stored), torch.device("cpu"))
    with _attention_spelt_out(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *sample, device=device))
    return Complexity(types.total(), _commonest(types), counter.get_total_flops() // 2)


@contextmanager
def _attention_spelt_out() -> Iterator[None]:
    """Attention by plain matrix products: the counter knows nothing of the fused kernels of a CPU."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def onnx_complexity(proto: onnx.ModelProto, blank: Images, images: int | None = None) -> Complexity:
    """Counts of an ONNX graph.

    Shapes are those of ONNX Runtime's tensors when it runs `blank` with no optimisation, so that its own operators and
    shapes that are computed on the way are no different from others.

    Args:
        blank: what the graph takes, of its input's type.
        images: how many these are; None where its first axis counts them.

    Raises:
        Exception: whatever ONNX Runtime raises where the graph does not take `blank`.
    """
    if proto.ByteSize() < LIMIT:
        _run(proto, [output.name for output in proto.graph.output], blank)
    proto = inlined(proto)
    types = _stored_parameters(proto)
    counted = [node for node in proto.graph.node if node.op_type in _COUNTED]
    multiply_adds = None
    kinds = {name for node in proto.graph.node for name in (node.op_type, f"{node.domain}.{node.op_type}")}
    if not kinds & _NOT_COUNTED and proto.ByteSize() < LIMIT:
        shapes = _shapes(proto, counted, blank)
        multiply_adds = sum(_multiply_adds(node, shapes) for node in counted) // (images or len(blank))
    return Complexity(types.total(), _commonest(types), multiply_adds)


def _commonest(types: Counter[str]) -> str:
    return types.most_common(1)[0][0] if types else "none"


def _multiply_adds(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Outputs, times what each is a sum of."""
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    inputs, outputs = [shapes.get(name, ()) for name in node.input], math.prod(shapes[node.output[0]])
    if node.op_type in _CONVOLUTIONS:
        return outputs * math.prod(inputs[_CONVOLUTIONS[node.op_type]][1:])
    if node.op_type == "ConvTranspose":  # the other way round: what each input is multiplied with
        return math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if node.op_type == "Einsum":
        return _einsum(attributes["equation"].decode(), inputs)
    if node.op_type == "Attention":  # queries with keys, then weights with values; the same for 3 and 4 dimensions
        return (math.prod(inputs[0]) + outputs) * inputs[1][-2]
    return outputs * inputs[0][-2 if attributes.get("transA") else -1]


def _einsum(equation: str, inputs: list[Shape]) -> int:
    """Every combination of the indices is one multiplication; an ellipsis is left to the first operand."""
    sizes: dict[str, int] = {}
    for labels, shape in zip(equation.replace(" ", "").split("->")[0].split(","), inputs, strict=True):
        before, dots, after = labels.partition("...")
        spread = [f".{number}" for number in range(len(shape) - len(before) - len(after))] if dots else []
        for label, size in zip([*before, *spread, *after], shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values()) if len(inputs) > 1 else 0


def _shapes(proto: onnx.ModelProto, nodes: list[NodeProto], blank: Images) -> dict[str, Shape]:
    """Shapes of all that the nodes read and write."""
    shapes = {entry.name: tuple(entry.dims) for entry in proto.graph.initializer}
    wanted = dict.fromkeys(name for node in nodes for name in [*node.input, node.output[0]] if name)
    names = [name for name in wanted if name not in shapes]
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    del watched.graph.output[:]
    taken = {entry.name for entry in watched.graph.input}
    shapes |= {name: blank.shape for name in names if name in taken}
    names = [name for name in names if name not in taken]
    if not names:
        return shapes
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    values = _run(watched, names, blank)
    return shapes | {name: np.shape(value) for name, value in zip(names, values, strict=True)}


def _run(proto: onnx.ModelProto, names: list[str], blank: Images) -> list[Any]:
    """What ONNX Runtime computes for the outputs `names`, with no optimisation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what goes wrong comes as an exception too
    bound_memory(options)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values: list[Any] = session.run(names, {session.get_inputs()[0].name: blank})
    return values


def _stored_parameters(proto: onnx.ModelProto) -> Counter[str]:
    """Numbers that were trained, by the type they are stored in."""
    constants = dict(_constants(proto.graph))
    types: Counter[str] = Counter()
    for name in dict.fromkeys(_weight_names(proto.graph, constants)):
        dtype = helper.tensor_dtype_to_string(constants[name].data_type).removeprefix("TensorProto.").lower()
        types[{"float": "float32", "double": "float64"}.get(dtype, dtype)] += math.prod(constants[name].dims)
    return types


def _weight_names(graph: onnx.GraphProto, constants: Mapping[str, TensorProto]) -> Iterator[str]:
    for node in _nodes(graph):
        slots: Any = range(len(node.input))
        quantised = node.op_type in _QUANTISED or node.op_type.startswith("QLinear")
        if quantised:
            slots = _QUANTISED.get(node.op_type, ())
        for slot in slots:
            tensor = constants.get(node.input[slot]) if slot < len(node.input) else None
            if tensor is None or slot in _NOT_WEIGHTS.get(node.op_type, ()):
                continue
            if quantised or (tensor.data_type in _FLOATS and len(tensor.dims) > 0):
                yield node.input[slot]


def _nodes(graph: onnx.GraphProto) -> Iterator[NodeProto]:
    """All nodes, those of branches and loop bodies too."""
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from _nodes(body)


def _bodies(node: NodeProto) -> Iterator[onnx.GraphProto]:
    for entry in node.attribute:
        if entry.type == onnx.AttributeProto.GRAPH:
            yield entry.g


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, TensorProto]]:
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant":
            for entry in node.attribute:
                if entry.name == "value":
                    yield node.output[0], entry.t
        for body in _bodies(node):
            yield from _constants(body)
