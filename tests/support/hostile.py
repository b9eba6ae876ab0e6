"""Files that nobody should open unseen: ONNX graphs that ask for the absurd, and archives that would run a command."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

IMAGE = ["n", 3, 8, 8]


class Command:
    """Unpickled, it makes the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def ints(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def model(
    nodes: list[Any],
    tensors: list[TensorProto] | None = None,
    *,
    opset: int = 18,
    ir: int = 9,
    functions: list[Any] | None = None,
    domains: tuple[str, ...] = (),
    inputs: list[Any] | None = None,
) -> onnx.ModelProto:
    """A graph from the image "x" to logits "y"; "f" is the image, flat."""
    flat = helper.make_node("Flatten", ["x"], ["f"])
    given = inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, IMAGE)]
    answer = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "k"])]
    graph = helper.make_graph([flat, *nodes], "g", given, answer, tensors or [])
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=functions or [])


def weights(numbers: int = 1920) -> onnx.ModelProto:
    """A linear classifier."""
    tensor = numpy_helper.from_array(np.ones((192, numbers // 192), np.float32), "w")
    return model([helper.make_node("MatMul", ["f", "w"], ["y"])], [tensor])


def external(location: str, **more: int) -> onnx.ModelProto:
    """`weights` with its tensor in another file."""
    proto = weights()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return proto


def with_tensor(**fields: Any) -> onnx.ModelProto:
    """`weights` with some fields of its tensor changed."""
    proto = weights()
    for name, value in fields.items():
        if isinstance(value, list):
            proto.graph.initializer[0].ClearField(name)  # type: ignore[arg-type]
            getattr(proto.graph.initializer[0], name).extend(value)
        else:
            setattr(proto.graph.initializer[0], name, value)
    return proto


def added(nodes: list[Any], tensors: list[TensorProto]) -> onnx.ModelProto:
    """The image plus the sum of "c", which is large."""
    last = [
        helper.make_node("Cast", ["c"], ["cf"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["cf"], ["r"], keepdims=0),
        helper.make_node("Add", ["f", "r"], ["y"]),
    ]
    return model([*nodes, *last], tensors)


def large_values() -> dict[str, onnx.ModelProto]:
    """Graphs of a few hundred bytes that ask for terabytes, by ONNX operator."""
    one = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "one")
    node = helper.make_node
    million = numpy_helper.from_array(np.array([1, 1, 1e6, 1e6], np.float32), "scales")
    shape = [node("ConstantOfShape", ["few"], ["row"]), node("Transpose", ["row"], ["column"], perm=[1, 0])]
    doubled = [node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(44)]
    hidden = [node("Log", ["ten"], ["log"]), node("Mul", ["log", "twelve"], ["power"]), node("Exp", ["power"], ["e"])]
    hidden += [node("Cast", ["e"], ["e64"], to=TensorProto.INT64), node("ConstantOfShape", ["e64"], ["c"])]
    float_ = [numpy_helper.from_array(np.array([v], np.float32), name) for name, v in (("ten", 10), ("twelve", 12))]
    return {
        "ConstantOfShape": added([node("ConstantOfShape", ["s"], ["c"])], [ints("s", 10**12)]),
        "Expand": added([node("Expand", ["one", "s"], ["c"])], [one, ints("s", 10**6, 10**6, 1, 1)]),
        "Tile": added([node("Tile", ["one", "s"], ["c"])], [one, ints("s", 1, 1, 10**6, 10**6)]),
        "Pad": added([node("Pad", ["one", "s"], ["c"])], [one, ints("s", 0, 0, 10**6, 10**6, 0, 0, 0, 0)]),
        "Resize": added([node("Resize", ["one", "", "scales"], ["c"], mode="nearest")], [one, million]),
        "Range": added(
            [node("Range", ["a", "b", "d"], ["c"])],
            [numpy_helper.from_array(np.array(value), name) for name, value in (("a", 0), ("b", 10**12), ("d", 1))],
        ),
        "outer sum": added([*shape, node("Add", ["row", "column"], ["c"])], [ints("few", 1, 10**6)]),
        "doubling": added([*doubled, node("Identity", ["c44"], ["c"])], [ints("c0", 1)]),
        "computed size": added(hidden, float_),
    }


def calling(functions: int, calls: int, *, recursive: bool = False) -> onnx.ModelProto:
    """Functions that each call the next `calls` times, so that the graph has calls ** functions nodes."""
    opset = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    made = []
    for index in range(functions):
        last = index == functions - 1
        inner = ("Relu", "") if last and not recursive else (f"f{0 if last else index + 1}", "own")
        names = ["a", *(f"v{i}" for i in range(calls - 1)), "b"]
        steps = [helper.make_node(inner[0], [names[i]], [names[i + 1]], domain=inner[1]) for i in range(calls)]
        made.append(helper.make_function("own", f"f{index}", ["a"], ["b"], steps, opset))
    return model([helper.make_node("f0", ["f"], ["y"], domain="own")], functions=made, domains=("own",))


def nested(depth: int) -> bytes:
    """A graph in a node in a graph, `depth` times; written by hand, since protobuf would not."""

    def field(number: int, content: bytes) -> bytes:
        length, size = b"", len(content)
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, b"\xa0\x01\x05" + field(6, graph)))
    return b"\x08\x09" + field(7, graph) + field(8, b"\x10\x12")


def many_nodes(count: int) -> bytes:
    """Empty nodes, two bytes each."""
    proto = model([]).SerializeToString()
    return (
        bytes(proto + onnx.ModelProto(graph=onnx.GraphProto()).SerializeToString()[:-1])
        + _varint(2 * count)
        + (b"\x0a\x00" * count)
    )


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


class Guarded(nn.Module):
    """A classifier whose export has everything a .pt2 can plainly hold: weights, a constant, symbols, a guard."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] % 2 == 0:
            x = x * 2
        shift = torch.tensor([0.5])
        return nn.functional.gelu(self.linear(x.reshape(x.shape[0], -1) + shift), approximate="tanh")


@cache
def plain_pt2() -> bytes:
    """What `torch.export.save` writes of it."""
    batch = ({0: torch.export.Dim.AUTO},)
    with torch.random.fork_rng():
        program = torch.export.export(Guarded().eval(), (torch.zeros(4, 3, 8, 8),), dynamic_shapes=batch)
    content = BytesIO()
    torch.export.save(program, content)
    return content.getvalue()


Change = bytes | Callable[[Any], Any]
"""The new content of a member, or a function of its JSON."""


def changed(archive: bytes, changes: Mapping[str, Change], *, drop: str = "", compress: bool = False) -> bytes:
    """A zip archive with some members replaced or added."""
    written = BytesIO()
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(BytesIO(archive)) as old, zipfile.ZipFile(written, "w", kind) as new:
        root = old.namelist()[0].partition("/")[0]
        left = dict(changes)
        for entry in old.infolist():
            name = entry.filename.partition("/")[2]
            content = old.read(entry)
            if name in left:
                change = left.pop(name)
                content = change if isinstance(change, bytes) else json.dumps(change(json.loads(content))).encode()
            if name != drop:
                new.writestr(entry.filename, content)
        for name, change in left.items():
            assert isinstance(change, bytes)
            new.writestr(f"{root}/{name}", change)
    return written.getvalue()


def in_graph(change: Callable[[Any], None]) -> Mapping[str, Change]:
    """A change to the JSON of the program."""

    def apply(program: Any) -> Any:
        change(program)
        return program

    return {"models/model.json": apply}


def saved(value: object) -> bytes:
    content = BytesIO()
    torch.save(value, content)
    return content.getvalue()


def doctored(marker: Path) -> dict[str, bytes]:
    """Archives from which `torch.export.load`, or the module that it returns, runs a command; by where that hides."""
    plain, command = plain_pt2(), Command(marker)
    code = f"__import__('os').system('touch {marker}')"

    def symbol(program: Any) -> None:
        sizes = program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = f"{code} or Symbol('s77', positive=True, integer=True)"

    def guard(program: Any) -> None:
        program["guards_code"].append(f"{code} == 0")

    def name(program: Any) -> None:
        text = json.dumps(program).replace('"x"', json.dumps(f"x={code}"))
        program.clear()
        program.update(json.loads(text))

    def pickled(config: Any) -> Any:
        first = next(iter(config["config"].values()))
        first["use_pickle"] = True
        return config

    def opaque(config: Any) -> Any:
        config["config"]["o"] = {
            "path_name": "opaque_obj_0",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }
        return config

    payload = saved((command, {}))
    weights_config, constants_config = (f"data/{kind}/model_{kind}_config.json" for kind in ("weights", "constants"))
    old = BytesIO()
    with zipfile.ZipFile(old, "w") as archive:
        archive.writestr("version", "8.20")
        archive.writestr("serialized_exported_program.json", zipfile.ZipFile(BytesIO(plain)).read(_member(plain)))
        for member in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{member}.pt", payload)
    return {
        "sample inputs": changed(plain, {"data/sample_inputs/model.pt": payload}),
        "legacy sample inputs": changed(plain, {"data/sample_inputs/model.pt": pickle.dumps((command, {}))}),
        "legacy weights": changed(plain, {"data/weights/model.pt": payload}),
        "pickled weight": changed(plain, {weights_config: pickled, "data/weights/weight_0": payload}),
        "pickled constant": changed(plain, {constants_config: pickled, "data/constants/tensor_0": payload}),
        "object": changed(plain, {constants_config: opaque, "data/constants/opaque_obj_0": pickle.dumps(command)}),
        "symbol": changed(plain, in_graph(symbol)),
        "guard": changed(plain, in_graph(guard)),
        "name": changed(plain, in_graph(name)),
        "old format": old.getvalue(),
    }


def _member(archive: bytes) -> str:
    with zipfile.ZipFile(BytesIO(archive)) as opened:
        return next(name for name in opened.namelist() if name.endswith("models/model.json"))


def safetensors(header: object, content: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + content
