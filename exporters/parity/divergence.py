"""Where an exported file leaves its source: both are run layer by layer on the same images."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from dgad_tk.artifacts.predictor import Images, Predictor
from exporters.onnx_write.values import describe_node, scopes_of, values_of


@dataclass(frozen=True)
class Call:
    """What a module of the source was given, and what it returned."""

    inputs: tuple[Any, ...]
    output: Tensor


@dataclass(frozen=True)
class Value:
    """What an exported file computes for a module of its source.

    Attributes:
        arrays: one of them stands for the module's output. There are two where a quantiser has taken in the ReLU
            behind the module, or inside it: the value before its clipping and the one after.
        place: where in the file that is, for people.
    """

    arrays: tuple[NDArray[Any], ...]
    place: str = ""


Layers = Callable[[Predictor, Mapping[str, Call]], dict[str, Value]]
"""Runs a file on the images that the source was given: modules of the source to the values that stand for them."""


@dataclass(frozen=True)
class Divergence:
    """The layer at which an exported file leaves its source.

    Attributes:
        layer: name of the module in the source, empty for the whole network.
        place: where it is in the file.
        relative: max|difference| of its output over the output's largest value, or over its range if that is less.
        within: no layer is beyond the tolerance, and this one adds most to the difference.
    """

    layer: str
    place: str
    relative: float
    within: bool

    def __str__(self) -> str:
        what = "the largest jump is at" if self.within else "the first layer to differ is"
        place = f" ({self.place})" if self.place else ""
        return f"{what} {self.layer or 'the network itself'}{place}: {self.relative:.2g} of its largest output"


def first_divergence(
    source: nn.Module, exported: Predictor, images: Images, layers: Layers, allowed: float | None
) -> Divergence | None:
    """The first layer whose output differs by more than `allowed`, else the one that adds most to the difference.

    "First" is the order in which the source's modules return, so that the innermost is named. A BatchNorm that the
    exporter folded stands for the convolution before it too.

    Args:
        source: in eval mode, on the CPU.
        images: float32 `(N, C, H, W)`; a few are enough.
        layers: how files of this format are run layer by layer.
        allowed: relative to the layer's largest output; None where all differ by design.

    Returns:
        None where no layer of the file can be told to be one of the source's.
    """
    calls = _calls(source, torch.from_numpy(images))
    values = layers(exported, calls)
    before, jumps = 0.0, list[tuple[float, Divergence]]()
    for name, call in calls.items():
        if name not in values or values[name].arrays[0].shape != tuple(call.output.shape):
            continue  # folded into its neighbour, or laid out in another way
        relative = min(_relative(call.output.numpy(), array) for array in values[name].arrays)
        if allowed is not None and relative > allowed:
            return Divergence(name, values[name].place, relative, within=False)
        jumps.append((relative - before, Divergence(name, values[name].place, relative, within=True)))
        before = relative
    return max(jumps, key=lambda jump: jump[0])[1] if jumps else None


def onnx_layers(exported: Predictor, calls: Mapping[str, Call]) -> dict[str, Value]:
    """Layers of an ONNX file of ours, by ONNX Runtime: a copy of the graph gives out what its modules compute.

    torch's exporter notes at each node which modules it was called in. The last node of a module makes its output.
    """
    assert exported.path is not None
    proto = onnx.load(str(exported.path), load_external_data=False)
    made = {(node.op_type, node.input[0]): node.output[0] for node in proto.graph.node if node.input}
    places: dict[str, tuple[list[str], str]] = {}
    for node in proto.graph.node:
        value = node.output[0]
        restored = made.get(("DequantizeLinear", made.get(("QuantizeLinear", value), "")))
        for scope in scopes_of(node):
            places[scope] = ([value, restored] if restored else [value], describe_node(node))
    wanted = sorted({value for values, _ in places.values() for value in values})
    images = _images(calls)
    (arrays,) = values_of(proto, wanted, images, at_a_time=len(images), folder=exported.path.parent)
    return {scope: Value(tuple(arrays[value] for value in values), place) for scope, (values, place) in places.items()}


def program_layers(exported: Predictor, calls: Mapping[str, Call]) -> dict[str, Value]:
    """Layers of a .pt2 file: its graph run node by node, each of which knows the modules it was called in."""
    graph = getattr(exported.network, "net", None)
    assert isinstance(graph, fx.GraphModule)
    values: dict[str, Value] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                for scope, _ in n.meta.get("nn_module_stack", {}).values():
                    values[scope] = Value((result.float().cpu().numpy(),), n.name)
            return result

    with torch.no_grad():
        Recorder(graph).run(torch.from_numpy(_images(calls)).to(_device(graph)))
    return values


def script_layers(exported: Predictor, calls: Mapping[str, Call]) -> dict[str, Value]:
    """Layers of a TorchScript file: each module is given what the source's was given, so errors do not add up."""
    assert exported.network is not None
    modules = dict(exported.network.named_modules())
    device = _device(exported.network)
    values: dict[str, Value] = {}
    for name, call in calls.items():
        forward = getattr(modules.get(name), "forward", None)
        # Tracing drops modules that compute nothing, and may give others more arguments than they take in Python.
        if forward is None or len(forward.schema.arguments) != len(call.inputs) + 1:
            continue
        with torch.no_grad():
            result = forward(*(each.to(device) if isinstance(each, Tensor) else each for each in call.inputs))
        if isinstance(result, Tensor):
            values[name] = Value((result.float().cpu().numpy(),))
    return values


def _calls(source: nn.Module, images: Tensor) -> dict[str, Call]:
    """Modules of `source` that are called once and return a tensor, by name, in the order in which they return."""
    given: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    found: dict[str, list[Call]] = defaultdict(list)

    def before(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        given[name].append(tuple(_kept(each) for each in inputs))

    def after(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        found[name].append(Call(given[name].pop(), _kept(output)))

    hooks: list[RemovableHandle] = []
    for name, module in source.named_modules():
        hooks.append(module.register_forward_pre_hook(partial(before, name)))
        hooks.append(module.register_forward_hook(partial(after, name)))
    try:
        with torch.no_grad():
            source(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: calls[0] for name, calls in found.items() if len(calls) == 1 and isinstance(calls[0].output, Tensor)}


def _kept(value: Any) -> Any:
    """A copy, since later layers may work in place."""
    return value.clone() if isinstance(value, Tensor) else value


def _images(calls: Mapping[str, Call]) -> Images:
    """What the whole network was given."""
    images: Images = calls[""].inputs[0].numpy()
    return images


def _relative(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """The largest difference over the largest value, or over the range, which a common offset does not change."""
    difference = np.abs(reference - other.astype(np.float64)).max()
    largest, span = float(np.abs(reference).max()), float(np.ptp(reference.astype(np.float64)))
    scale = max(min(largest, span or largest), float(np.finfo(np.float32).tiny))
    return float(difference) / scale if np.isfinite(difference) else float("inf")


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
