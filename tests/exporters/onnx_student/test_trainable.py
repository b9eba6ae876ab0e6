"""Graphs as students: they compute what the file computes, learn what the file learned, and are written out again."""

import copy
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from shared import randomise_batch_norm
from torch import Tensor, nn

from dgad_tk.ascent.folded import Folded
from dgad_tk.common import UserError
from dgad_tk.training.learner import norms_and_biases
from exporters.onnx_student.student import read_student, student_of_graph, with_head
from exporters.onnx_twin.trainable import BatchNorm, count_learned, last_linear

SHAPE = (2, 8, 8)


class Products(nn.Module):
    """Products, what is added to them, LayerNorm, PReLU and a normalisation of images that nobody learned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shift = nn.Parameter(torch.randn(128, 12) / 11), nn.Parameter(torch.randn(12))
        self.norm, self.slope = nn.LayerNorm(12), nn.PReLU(12)
        self.last = nn.Parameter(torch.randn(12, 5))
        self.register_buffer("std", torch.tensor([0.4, 0.5]).reshape(1, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 0.3) / self.std
        return torch.softmax(self.slope(self.norm(x.flatten(1) @ self.first + self.shift)) @ self.last, 1)


class Tied(nn.Module):
    """One kernel twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(torch.relu(self.conv(x)))).flatten(1))


class Shuffled(nn.Module):
    """Channels in another order, by shapes into which an exporter writes the number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 6, 3), nn.Linear(6 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        x = x.reshape(x.shape[0], 2, 3, 6, 6).transpose(1, 2).reshape(x.shape[0], 6, 6, 6)
        return self.head(x.flatten(1))


def convolutional() -> nn.Module:
    net = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 3, stride=2, groups=2), nn.ReLU(), nn.BatchNorm2d(8), nn.Dropout(0.5)),
        *(nn.Flatten(), nn.Linear(72, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5)),
    )
    randomise_batch_norm(net)
    return net


NETWORKS = {"convolutional": convolutional, "products": Products, "shuffled": Shuffled, "tied": Tied}


def written(network: nn.Module, path: Path, *, batch: int = 2, free: bool = True, kept: bool = False) -> Path:
    """An ONNX file as people export it: BatchNorm folded or kept, of any batch size or of one."""
    options = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False} if kept else {}
    axes = {"dynamic_axes": {"images": {0: "batch"}}} if free else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated, and what many files come from
        torch.onnx.export(
            network.eval(), (torch.rand(batch, *SHAPE),), path, dynamo=False, input_names=["images"], **options, **axes
        )
    return path


def answers(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path))
    name = session.get_inputs()[0].name
    each = (
        [session.run(None, {name: part.numpy()})[0] for part in x.split(session.get_inputs()[0].shape[0])]
        if isinstance(session.get_inputs()[0].shape[0], int)
        else [session.run(None, {name: x.numpy()})[0]]
    )
    return torch.from_numpy(np.concatenate(each))


@pytest.mark.parametrize("form", ["free", "one", "kept"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_student_computes_what_its_file_computes(tmp_path: Path, name: str, form: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    path = written(
        network, tmp_path / "theirs.onnx", batch=1 if form == "one" else 2, free=form != "one", kept=form == "kept"
    )
    found = read_student(path)
    assert (found.input_shape, found.classes) == (SHAPE, 5)
    x = torch.rand(7, *SHAPE)
    logits = found.network(x)
    ours = torch.softmax(logits, 1) if name == "products" else logits
    torch.testing.assert_close(ours, answers(path, x), rtol=1e-4, atol=1e-5)
    again = student_of_graph(found.graph, SHAPE, 5)
    again.load_state_dict(found.network.state_dict())
    assert torch.equal(again(x), logits)
    torch.testing.assert_close(Folded(found.network)(x), logits, rtol=1e-4, atol=1e-4)


def test_what_was_learned_is_learned_again(tmp_path: Path) -> None:
    """As many numbers as torch's own network has parameters; the images' normalisation stays."""
    torch.manual_seed(0)
    network = Products()
    found = read_student(written(network, tmp_path / "theirs.onnx"))
    assert (found.learned, found.fixed) == (sum(each.numel() for each in network.parameters()), 3)
    kept = convolutional()
    found = read_student(written(kept, tmp_path / "kept.onnx", kept=True))
    assert (found.learned, found.fixed) == (sum(each.numel() for each in kept.parameters()), 0)
    kinds = [type(each) for each in found.network.children()]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.Conv2d, BatchNorm, nn.Linear, BatchNorm, nn.Linear]
    tied = read_student(written(Tied(), tmp_path / "tied.onnx"))
    assert tied.learned == sum(each.numel() for each in Tied().parameters())


class Slopes(nn.Module):
    """A convolution, a shift of its maps as a map of one pixel, and PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.slope, self.head = nn.Conv2d(2, 6, 3), nn.PReLU(6), nn.Linear(6, 5)
        self.product, self.shift = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(1, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.slope(self.conv(x))
        return self.head((self.product @ maps.flatten(2) + self.shift).mean(2))


def test_slopes_and_biases_of_a_graph_need_not_decay(tmp_path: Path) -> None:
    """--decay-weights-only spares them in the shapes that a graph has them in."""
    torch.manual_seed(0)
    student = read_student(written(Slopes(), tmp_path / "theirs.onnx")).network
    spared = {id(parameter) for parameter in norms_and_biases(student)}
    shapes = {True: [], False: []}
    for parameter in student.parameters():
        shapes[id(parameter) in spared].append(tuple(parameter.shape))
    assert sorted(shapes[False]) == [(5, 6), (6, 2, 3, 3), (6, 6)]
    assert sum(max(shape) for shape in shapes[True]) >= 6 + 6 + 5  # slopes, and biases of two layers
    assert (6, 1, 1) in shapes[True]


def test_names_that_torchs_exporter_gives_itself_are_left_to_it(tmp_path: Path) -> None:
    """A file of that exporter has constants called val_0, val_1, and its network is exported by it again."""
    torch.manual_seed(0)
    path = written(Products(), tmp_path / "theirs.onnx")
    proto = onnx.load(path)
    renamed = {tensor.name: f"val_{number}" for number, tensor in enumerate(proto.graph.initializer)}
    for tensor in proto.graph.initializer:
        tensor.name = renamed[tensor.name]
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    onnx.save(proto, path)
    network, x = read_student(path).network, torch.rand(5, *SHAPE)
    assert not [name for name in network.state_dict() if name.startswith("val_")]
    assert [name for name, _ in network.named_parameters() if "val_" in name]
    torch.testing.assert_close(torch.softmax(network(x), 1), answers(path, x), rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_torchs_own_network(tmp_path: Path) -> None:
    """In training mode too, where BatchNorm has its batch's statistics and moves the running ones."""
    torch.manual_seed(0)
    network = convolutional()
    network[6].p = 0.0  # type: ignore[union-attr]
    student = read_student(written(network, tmp_path / "kept.onnx", kept=True)).network
    x, y = torch.rand(8, *SHAPE), torch.arange(8) % 5
    for each in (network.train(), student.train()):
        nn.functional.cross_entropy(each(x), y).backward()
    theirs = {tuple(p.shape): p.grad for p in network.parameters() if p.dim() > 1}
    ours = {tuple(p.shape): p.grad for p in student.parameters() if p.dim() > 1}
    assert len(ours) == len(theirs) == 4
    for shape, gradient in theirs.items():
        torch.testing.assert_close(ours[shape], gradient, rtol=1e-3, atol=1e-5)
    expected, found = (net[1] for net in (network, list(student.children())))  # type: ignore[index]
    torch.testing.assert_close(found.running_mean, expected.running_mean)
    torch.testing.assert_close(found.running_var, expected.running_var)


def test_a_head_for_other_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = read_student(written(convolutional(), tmp_path / "theirs.onnx")).network
    other = with_head(network, 3, "it")
    x = torch.rand(4, *SHAPE)
    assert other(x).shape == (4, 3)
    assert last_linear(other)
    changed = [name for name, tensor in other.state_dict().items() if tensor.shape != network.state_dict()[name].shape]
    assert {name.rpartition(".")[0] for name in changed} == {last_linear(network)}
    ends_in_pooling = nn.Sequential(nn.Conv2d(2, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = read_student(written(ends_in_pooling, tmp_path / "pooled.onnx")).network
    with pytest.raises(
        UserError, match="it knows another number of classes than the 3 .* does not end in a linear layer"
    ):
        with_head(network, 3, "it")


def test_files_that_do_not_train(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = written(convolutional(), tmp_path / "theirs.onnx")
    quantize_dynamic(path, tmp_path / "int8.onnx", weight_type=QuantType.QUInt8)
    with pytest.raises(
        UserError, match="computes in 8-bit integers: its weights are rounded, and .*--format onnx-int8"
    ):
        read_student(tmp_path / "int8.onnx")
    mixing = written(Mixing(), tmp_path / "mixing.onnx", batch=2, free=False)
    with pytest.raises(UserError, match="made for a fixed number of images and cannot be freed of it"):
        read_student(mixing)
    with pytest.raises(UserError, match="no constants that training learns"):
        read_student(written(Fixed(), tmp_path / "fixed.onnx"))


class Mixing(nn.Module):
    """Images of a batch change each other's answers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1))
        return logits - logits.flip(0) / 2


class Fixed(nn.Module):
    """Means of parts of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], 4, 32).mean(2)


def test_counting_leaves_statistics_out() -> None:
    norm = nn.Sequential(nn.BatchNorm2d(3))
    assert count_learned(norm) == (6, 0)
    assert count_learned(copy.deepcopy(norm).requires_grad_(False)) == (6, 0)


def test_external_data_come_along(tmp_path: Path) -> None:
    path = written(convolutional(), tmp_path / "theirs.onnx")
    onnx.save_model(
        onnx.load(path), str(tmp_path / "outside.onnx"), save_as_external_data=True, location="w.data", size_threshold=0
    )
    found = read_student(tmp_path / "outside.onnx")
    (tmp_path / "w.data").unlink()
    x = torch.rand(3, *SHAPE)
    assert torch.equal(student_of_graph(found.graph, SHAPE, 5)(x), found.network(x))
