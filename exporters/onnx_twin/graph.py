"""The walk over an ONNX graph: from its nodes to an `fx.GraphModule`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto
from onnx.inliner import inline_local_functions
from torch import Tensor, fx

from dgad_tk.common import UserError
from exporters.onnx_twin.folding import fold_batch_norm
from exporters.onnx_twin.node import HINT, NodeView, describe
from exporters.onnx_twin.operators import OPERATORS, TAKE_SIZES
from exporters.onnx_twin.size_operators import SIZE_OPERATORS
from exporters.onnx_twin.sizes import Sizes, as_sizes, as_tensor, simplify
from exporters.onnx_twin.tensors import dtype_of, from_proto
from exporters.onnx_twin.tracing import Recorder, call

BATCH, UNKNOWN = 2, 224
"""Sizes that an example input gets where the graph leaves them open: its batch, and any other axis."""


def to_torch(model: ModelProto) -> fx.GraphModule:
    """The twin of an ONNX image classifier.

    Args:
        model: with its tensors inside. It is not changed.

    Returns:
        A module in eval mode that takes the graph's input, for images `(N, C, H, W)`, and returns its first
        output. Weights are buffers, named after the ONNX initializers; none requires a gradient.

    Raises:
        UserError: it uses an operator, an attribute or a type that the twin does not have, its graph is
            malformed, or it has not exactly one input.
    """
    if model.functions:
        model = inline_local_functions(model)  # a copy
    graph = model.graph
    opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
    if not graph.output:
        raise UserError("the ONNX graph has no output", hint="is it an image classifier?")
    _tensor_type(graph.output[0], "output")
    wanted = graph.output[0].name
    nodes = _live(graph, wanted)
    _check_operators(nodes, opsets)

    image = _image(graph)
    walk = _Walk(opsets)
    values: dict[str, Any] = {image.name: walk.placeholder(image)}
    walk.run(graph, nodes, values)
    result = walk.tensor(_value(values, wanted, "the graph's output"))
    walk.recorder.graph.output(walk.recorder.create_arg(result))
    return _finish(walk.recorder)


def _finish(recorder: Recorder) -> fx.GraphModule:
    """A module from what was recorded."""
    fold_batch_norm(recorder.graph, recorder.constants)
    recorder.graph.eliminate_dead_code()
    for node in recorder.graph.nodes:
        node.meta.clear()  # the examples were guesses
    constants = {name: tensor.detach() for name, tensor in recorder.constants.items()}
    twin = fx.GraphModule(constants, recorder.graph, "OnnxTwin")
    return twin.eval()


class _Walk:
    """Runs nodes in order. `tracing` says what the values between them are, and `sizes` what else they may be."""

    def __init__(self, opsets: Mapping[str, int]) -> None:
        self.recorder = Recorder(fx.Graph())
        self._opsets = opsets
        self._image: fx.Proxy | None = None
        self._device: Any = None

    def placeholder(self, image: ValueInfoProto) -> fx.Proxy:
        """The graph's input, with an example."""
        kind = image.type.tensor_type
        sizes = [
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else UNKNOWN if axis else BATCH
            for axis, dim in enumerate(kind.shape.dim)
        ]
        dtype = dtype_of(kind.elem_type, f"input '{image.name}'")
        example = torch.empty(sizes, dtype=dtype, device="meta") if kind.HasField("shape") else None
        self._image = self.recorder.placeholder(image.name, example)
        return self._image

    def device(self) -> torch.device:
        """The device that the twin runs on, as a value of the graph."""
        if self._device is None:
            self._device = call(getattr, self._image, "device")
        return self._device  # type: ignore[no-any-return]

    def tensor(self, value: Any) -> Any:
        """`value` as a tensor."""
        return as_tensor(value, self.device) if isinstance(value, Sizes) else value

    def run(self, graph: GraphProto, nodes: Iterable[NodeProto], values: dict[str, Any]) -> None:
        """Add what `nodes` compute to `values`.

        Args:
            graph: where the initializers are that `nodes` read.
            nodes: in an order in which each comes after those it depends on.
            values: name to value.

        Raises:
            UserError: a node cannot be run, or comes too early.
        """
        initializers = {proto.name: proto for proto in graph.initializer}
        for proto in nodes:
            for name in proto.input:
                if name in initializers and name not in values:
                    values[name] = from_proto(initializers[name])
                    self.recorder.suggest(values[name], name)
            domain = _domain(proto.domain)
            node = NodeView(proto, self._opsets.get(domain, 0), self.device)
            inputs = [_value(values, name, str(node)) if name else None for name in proto.input]
            results = self._outputs(node, inputs)
            for index, name in enumerate(proto.output):
                values[name] = results[index] if index < len(results) else _Missing(f"output {index} of {node}")
                if isinstance(values[name], Tensor):
                    self.recorder.suggest(values[name], name)

    def _outputs(self, node: NodeView, inputs: list[Any]) -> tuple[Any, ...]:
        """What `node` computes, one value an output; those it cannot compute are left out."""
        try:
            result = self._result(node, inputs)
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
            # Inputs that do not fit each other: the file's fault as a rule, and the cause stays attached.
            raise UserError(f"the twin cannot run {node}: {error}", hint=HINT) from error
        node.check_read()
        return result if isinstance(result, tuple) else (result,)

    def _result(self, node: NodeView, inputs: list[Any]) -> Any:
        key = operator_key(node.domain, node.op_type)
        if any(isinstance(value, Sizes) for value in inputs):
            entries = [as_sizes(value) for value in inputs if value is not None]
            if key in SIZE_OPERATORS and len(entries) == len(inputs) and all(array is not None for array in entries):
                result = SIZE_OPERATORS[key](node, *entries)
                if result is not None:
                    return simplify(result)
            if key not in TAKE_SIZES:
                inputs = [self.tensor(value) for value in inputs]
        return OPERATORS[key](node, *inputs)


def operator_key(domain: str, op_type: str) -> str:
    """The name of an operator in the table: `Relu`, `com.microsoft.QLinearAdd`."""
    return f"{domain}.{op_type}" if domain else op_type


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


@dataclass(frozen=True)
class _Missing:
    """An output that the twin does not compute; only asking for it is an error."""

    what: str


def _value(values: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in values:
        raise UserError(
            f"the ONNX graph is malformed: nothing before {where} gives '{name}'",
            hint="export the model again",
        )
    if isinstance(values[name], _Missing):
        raise UserError(f"the twin does not compute {values[name].what}", hint=HINT)
    return values[name]


def _live(graph: GraphProto, wanted: str) -> list[NodeProto]:
    """The nodes that `wanted` depends on, in the graph's order."""
    needed = {wanted}
    live = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            live.append(node)
    return live[::-1]


def _check_operators(nodes: Iterable[NodeProto], opsets: Mapping[str, int]) -> None:
    """Every operator is in the table.

    Raises:
        UserError: names all that are not.
    """
    unknown: dict[str, str] = {}
    for node in nodes:
        domain = _domain(node.domain)
        key = operator_key(domain, node.op_type)
        if key not in OPERATORS:
            unknown.setdefault(key, describe(node.op_type, domain, opsets.get(domain, 0), node.name))
    if unknown:
        what = "operator" if len(unknown) == 1 else "operators"
        raise UserError(f"the twin has no {what} " + "; ".join(unknown.values()), hint=HINT)


def _image(graph: GraphProto) -> ValueInfoProto:
    """The graph's one input.

    Raises:
        UserError: there is none, several, or it is no tensor.
    """
    initializers = {proto.name for proto in graph.initializer}
    initializers.update(proto.values.name for proto in graph.sparse_initializer)
    inputs: list[ValueInfoProto] = [
        info for info in graph.input if info.name not in initializers
    ]  # IR version 3 lists weights as inputs
    if len(inputs) != 1:
        names = ", ".join(f"'{info.name}'" for info in inputs) or "none"
        raise UserError(
            f"expected an ONNX graph with one input, the images, got {names}",
            hint="is it an image classifier?",
        )
    _tensor_type(inputs[0], "input")
    return inputs[0]


def _tensor_type(info: ValueInfoProto, what: str) -> None:
    """`info` is a tensor of numbers.

    Raises:
        UserError: it is a sequence, a map, an optional, or holds strings.
    """
    kind = info.type.WhichOneof("value")
    if kind not in ("tensor_type", None):
        raise UserError(f"{what} '{info.name}' should be a tensor, got a {kind.removesuffix('_type')}", hint=HINT)
    if kind is not None and info.type.tensor_type.elem_type:
        dtype_of(info.type.tensor_type.elem_type, f"{what} '{info.name}'")
