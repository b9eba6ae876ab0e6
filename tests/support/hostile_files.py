"""Files that are not what their suffix says."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from onnx import TensorProto, helper


def graph_of(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any] | None = None) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def image(shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info("x", kind, shape)


def out(shape: list[Any]) -> Any:
    return helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def hostile_files(folder: Path) -> dict[str, str]:
    """Files that are not what their suffix says, and what must be said of each."""
    relu = helper.make_node("Relu", ["x"], ["y"])
    two = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in ("x", "z")]
    add = helper.make_node("Add", ["x", "z"], ["y"])
    nchw, nk = ["n", 3, 8, 8], ["n", 10]
    flat = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Foo", ["f"], ["y"], domain="odd.ops")]
    written = {
        "empty.onnx": (b"", "is an empty file, not an ONNX model"),
        "text.onnx": (b"hello, world" * 50, "not a valid ONNX model"),
        "image_to_image.onnx": (graph_of([relu], [image(nchw)], [out(nchw)]), "is not a classifier"),
        "audio.onnx": (graph_of([relu], [image(["n", 16000])], [out(["n", 16000])]), "not an image classifier"),
        "two_inputs.onnx": (graph_of([add], two, [out(nchw)]), "not an image classifier"),
        "integers.onnx": (
            graph_of([helper.make_node("Cast", ["x"], ["y"], to=1)], [image(nchw, TensorProto.INT64)], [out(nchw)]),
            "not an image classifier",
        ),
        "operator.onnx": (graph_of(flat, [image(nchw)], [out(nk)]), "odd.ops"),
        "text.pt": (b"hello", "is not a TorchScript file"),
        "bomb.pt": (pickle.dumps(Bomb()), "is not a TorchScript file"),
        "text.safetensors": (b"hello", "it is text that begins 'hello'"),
        "model.h5": (b"hello", "by its suffix '.h5'"),
    }
    for name, (content, _) in written.items():
        (folder / name).write_bytes(content)
    torch.save({"w": torch.zeros(2), "bomb": Bomb()}, folder / "zip_bomb.pt")
    return {name: message for name, (_, message) in written.items()} | {"zip_bomb.pt": "is not a TorchScript file"}
