"""Teachers from files: every container people use gives the same logits, what does not fit is said, nothing is run."""

import argparse
import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from shared import Victim, artifact, randomise_batch_norm
from torch import Tensor, nn

from dgad_tk.artifacts.weights import save_state, save_weights
from dgad_tk.common import UserError, sha256_file
from dgad_tk.data import Dataset, load_dataset
from dgad_tk.models import MODELS, Normalize, build_model
from dgad_tk.teachers.opening import channels_of, check_teacher, open_teacher

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def network(model: str = "resnet8", classes: int = 10, in_channels: int = 1, **more: Any) -> nn.Module:
    return randomise_batch_norm(build_model(model, in_channels=in_channels, classes=classes, **more)).eval()


def bare(model: nn.Module) -> State:
    """The state dict as other projects know it: without our wrapper."""
    return dict(model.get_submodule("net").state_dict())


def prefixed(prefix: str) -> Callable[[State], object]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def assert_same(teacher: nn.Module, expected: nn.Module, shape: tuple[int, int, int] = (1, 8, 8)) -> None:
    x = torch.rand(4, *shape)
    assert torch.equal(teacher(x), expected(x))
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


CONTAINERS: dict[str, Callable[[State], object]] = {
    "flat": lambda state: state,
    "data-parallel": prefixed("module."),
    "compiled in a wrapper, twice": prefixed("module.model._orig_mod.module.net."),
    "net beside accuracies": lambda state: {"net": state, "clean_acc": 0.8, "epoch": 9, "acc": torch.tensor(0.5)},
    "state_dict": lambda state: {"state_dict": prefixed("module.")(state), "arch": "resnet"},
    "model_state_dict in model": lambda state: {"model": {"model_state_dict": state}, "optimizer": {"lr": 0.1}},
    "student": lambda state: {"student": state},
    "ema": lambda state: {"ema": state},
    "OrderedDict": OrderedDict,
    "without batch counts": lambda state: {name: state[name] for name in state if "num_batches" not in name},
    "numpy scalars": lambda state: {"net": state, "acc": np.float64(0.8), "epoch": np.int64(3), "best": np.bool_(True)},
    "parameters": lambda state: {
        name: nn.Parameter(each) if each.is_floating_point() else each for name, each in state.items()
    },
    "averaged batch counts": lambda state: {
        name: state[name].float() + 0.5 if "num_batches" in name else state[name] for name in state
    },
    "TRADES' dead block": lambda state: state | {"sub_block1.layer.0.conv1.weight": torch.ones(3)},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("model", ["resnet8", ""])
def test_containers(digits: Dataset, tmp_path: Path, container: str, zipped: bool, model: str) -> None:
    path, expected = tmp_path / "teacher.pth.tar", network()
    torch.save(CONTAINERS[container](bare(expected)), path, _use_new_zipfile_serialization=zipped)
    teacher, name = open_teacher(path, digits, model=model)
    assert name == f"resnet8 {sha256_file(path)}"
    assert_same(teacher, expected)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".tar", ".ckpt", ".bin"])
def test_suffixes(digits: Dataset, tmp_path: Path, suffix: str) -> None:
    path, expected = tmp_path / f"teacher{suffix}", network()
    torch.save(bare(expected), path)
    assert_same(open_teacher(path, digits)[0], expected)


def test_safetensors_with_and_without_our_record(digits: Dataset, tmp_path: Path) -> None:
    expected = network(mean=[0.3], std=[0.2])
    save_weights(tmp_path / "ours.safetensors", expected, artifact(normalize={"mean": [0.3], "std": [0.2]}))
    save_file(expected.state_dict(), tmp_path / "foreign.safetensors")
    for name, model in (("ours", "resnet18"), ("foreign", "resnet8"), ("foreign", "")):
        teacher, said = open_teacher(tmp_path / f"{name}.safetensors", digits, model=model)
        assert said.startswith("resnet8 ")
        assert_same(teacher, expected)
    with pytest.raises(UserError, match="says itself how it normalises its images .leave out --teacher-mean"):
        open_teacher(tmp_path / "ours.safetensors", digits, mean=(0.3,), std=(0.2,))


def test_the_checkpoint_of_an_unfinished_run_can_teach(digits: Dataset, tmp_path: Path) -> None:
    expected = network(mean=[0.3], std=[0.2])
    save_state(tmp_path / "last.ckpt", {"student": expected.state_dict(), "optimizer": {"state": {}}})
    assert_same(open_teacher(tmp_path / "last.ckpt", digits)[0], expected)


@pytest.mark.parametrize("model", ["resnet20", "resnet56", "preact-resnet18", "mobilenetv2", "wrn-16-4", "vgg16"])
def test_the_network_is_told_from_the_weights(digits: Dataset, tmp_path: Path, model: str) -> None:
    expected = network(model)
    torch.save({"state_dict": prefixed("module.")(bare(expected))}, tmp_path / "t.pt")
    teacher, name = open_teacher(tmp_path / "t.pt", digits)
    assert name.split(" ")[0] == model
    assert_same(teacher, expected)


def test_every_row_is_told_from_every_other() -> None:
    from dgad_tk.teachers.recognition import recognised

    for model in MODELS:
        with torch.device("meta"):
            net = build_model(model, in_channels=4, classes=7).get_submodule("net")
        found = recognised(net.state_dict())
        assert found is not None
        assert (found.model, found.unexpected) == (model, ())


def test_half_precision_is_widened(digits: Dataset, tmp_path: Path) -> None:
    expected = network().half()
    torch.save(expected.state_dict(), tmp_path / "t.pt")
    assert_same(open_teacher(tmp_path / "t.pt", digits)[0], expected.float())


@pytest.mark.parametrize("names", [("mu", "sigma"), ("mean", "std"), ("normalize.mean", "normalize.std")])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (3, 1, 1), (3,)])
def test_normalisation_in_the_file(
    digits: Dataset, tmp_path: Path, names: tuple[str, str], shape: tuple[int, ...]
) -> None:
    """Of colour images, so that a channel taken for another would show."""
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    colour = replace(digits, train=replace(digits.train, base=np.repeat(digits.train.base, 3, axis=1)))
    expected = network(in_channels=3, mean=mean, std=std)
    own = {names[0]: torch.tensor(mean).view(shape), names[1]: torch.tensor(std).view(shape)}
    torch.save({"model": prefixed("module.model.")(bare(expected)) | prefixed("module.")(own)}, tmp_path / "t.pt")  # type: ignore[operator]
    assert_same(open_teacher(tmp_path / "t.pt", colour)[0], expected, (3, 8, 8))
    assert_same(open_teacher(tmp_path / "t.pt", colour, mean=tuple(mean), std=tuple(std))[0], expected, (3, 8, 8))
    with pytest.raises(UserError, match="normalises by its own mean 0.4, 0.5, 0.6 .*leave out --teacher-mean"):
        open_teacher(tmp_path / "t.pt", colour, mean=(0.5, 0.5, 0.5), std=(0.2, 0.3, 0.25))
    with pytest.raises(UserError, match="normalises by mean 0.4, 0.5, 0.6 .* expected 1 values each"):
        open_teacher(tmp_path / "t.pt", digits)


def test_normalisation_as_given(digits: Dataset, tmp_path: Path) -> None:
    expected = network(mean=[0.3], std=[0.2])
    torch.save(bare(expected), tmp_path / "t.pt")
    assert_same(open_teacher(tmp_path / "t.pt", digits, mean=(0.3,), std=(0.2,))[0], expected)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.3, 0.3, 0.3), (0.2, 0.2, 0.2), "--teacher-mean takes 1 values here, one per channel, got 3"),
        ((0.3,), (), "--teacher-mean takes 1 values .*give both"),
        ((125.0,), (50.0,), "--teacher-mean is of pixels in .0, 1., got 125 .divide by 255"),
        ((0.3,), (0.0,), "--teacher-std is of pixels"),
        ((float("nan"),), (0.2,), "--teacher-mean is of pixels"),
    ],
)
def test_normalisation_that_cannot_be(
    digits: Dataset, tmp_path: Path, mean: tuple[float, ...], std: tuple[float, ...], message: str
) -> None:
    torch.save(bare(network()), tmp_path / "t.pt")
    with pytest.raises(UserError, match=message):
        open_teacher(tmp_path / "t.pt", digits, mean=mean, std=std)


def without(*names: str) -> Callable[[State], object]:
    return lambda state: {name: state[name] for name in state if name not in names}


MISFITS: list[tuple[str, Callable[[State], object], str]] = [
    ("", without("conv1.weight"), "are of no network known here .name it: --teacher-model"),
    ("resnet8", without("conv1.weight", "bn1.bias"), "does not fit a resnet8: conv1.weight is missing; bn1.bias is"),
    ("resnet8", lambda state: state | {"odd": torch.ones(2)}, "odd is unexpected"),
    ("resnet8", lambda state: state | {"bn1.bias": torch.ones(2)}, "bn1.bias is 2, expected 16"),
    ("resnet8", lambda state: state | {"module.bn1.bias": torch.ones(16)}, "holds two networks: 'bn1.bias'"),
    ("resnet8", lambda state: state | {"mean": torch.ones(1)}, "holds a mean .* but not both"),
    ("resnet8", lambda state: state | {"bn1.bias": torch.full((16,), torch.nan)}, "bn1.bias is not finite"),
    (
        "resnet8",
        lambda state: state | {"bn1.bias": torch.ones(16, dtype=torch.int8)},
        "bn1.bias is torch.int8, expected torch.float32",
    ),
    ("resnet8", lambda state: state | {"bn1.bias": torch.ones(16).to_sparse()}, "bn1.bias is no plain tensor"),
    ("resnet8", lambda state: state | {"std": torch.ones(()).expand(10**12)}, "std is unexpected"),
    ("resnet8", lambda state: state | {"bn1.bias": torch.ones(()).expand(10**12)}, "bn1.bias is 1000000000000"),
    ("resnet20", dict, "the file holds a resnet8, not a resnet20 .--teacher-model resnet8"),
    ("wrn-34-10", dict, "the file holds a resnet8, not a wrn-34-10"),
    ("torchvision:mobilenet_v3_small", dict, "the file holds a resnet8, not a torchvision:mobilenet_v3_small"),
    (
        "torchvision:mobilenet_v3_small",
        without("bn1.bias"),
        "does not fit a torchvision:mobilenet_v3_small: .*; and [0-9]+ more",
    ),
    ("resnet81", dict, "unknown model 'resnet81'.*did you mean 'resnet8'"),
    ("", lambda _: {"epoch": 3, "lr": 0.1}, "no weights where they are expected; found epoch, lr"),
    ("", lambda _: {}, "no weights where they are expected; found nothing"),
    ("", lambda _: [1, 2], "holds a list, not a state dict"),
    ("", lambda _: torch.ones(3), "holds a Tensor, not a state dict"),
]


@pytest.mark.parametrize(("model", "change", "message"), MISFITS)
def test_misfits(digits: Dataset, tmp_path: Path, model: str, change: Callable[[State], object], message: str) -> None:
    torch.save(change(bare(network())), tmp_path / "t.pt")
    with pytest.raises(UserError, match=message):
        open_teacher(tmp_path / "t.pt", digits, model=model)


def test_other_classes_and_channels(digits: Dataset, tmp_path: Path) -> None:
    torch.save(bare(network("wrn-16-4", classes=100)), tmp_path / "k.pt")
    torch.save(bare(network("resnet8", in_channels=3)), tmp_path / "c.pt")
    for model in ("wrn-16-4", ""):
        with pytest.raises(UserError, match="the wrn-16-4 knows 100 classes, the dataset has 10"):
            open_teacher(tmp_path / "k.pt", digits, model=model)
    for model in ("resnet8", ""):
        with pytest.raises(UserError, match="the resnet8 takes 3 channels, the images have 1"):
            open_teacher(tmp_path / "c.pt", digits, model=model)


@pytest.mark.parametrize(("depth", "width"), [(28, 10), (10, 2)])
def test_another_wide_resnet(digits: Dataset, tmp_path: Path, depth: int, width: int) -> None:
    """Told by shapes alone, so one number expanded to each shape will do for a file of 146 MB."""
    from dgad_tk.models.wide_resnet import WideResNet

    with torch.device("meta"):
        state = WideResNet(1, 10, depth=depth, width=width).state_dict()
    torch.save({name: torch.zeros(()).expand(tensor.shape) for name, tensor in state.items()}, tmp_path / "t.pt")
    found = f"wrn-{depth}-{width}"
    with pytest.raises(UserError, match=f"the file holds a {found}, not a wrn-16-4 .--teacher-model {found}, or leave"):
        open_teacher(tmp_path / "t.pt", digits, model="wrn-16-4")


@pytest.mark.parametrize("model", ["", "wrn-10-2"])
def test_a_wide_resnet_that_is_no_row(digits: Dataset, tmp_path: Path, model: str) -> None:
    expected = network("wrn-10-2")
    torch.save({"state_dict": prefixed("module.0.")(bare(expected))}, tmp_path / "t.pt")
    teacher, name = open_teacher(tmp_path / "t.pt", digits, model=model)
    assert name.startswith("wrn-10-2 ")
    assert_same(teacher, expected)


def test_a_container_of_itself(digits: Dataset, tmp_path: Path) -> None:
    content: dict[str, object] = {"epoch": 1}
    content["net"] = content
    torch.save(content, tmp_path / "t.pt")
    with pytest.raises(UserError, match="no weights where they are expected; found epoch, net"):
        open_teacher(tmp_path / "t.pt", digits)


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_checkpoint_is_not_run(digits: Dataset, tmp_path: Path, zipped: bool) -> None:
    path, made = tmp_path / "t.pt", tmp_path / "made"
    torch.save({"state_dict": bare(network()), "x": Evil(made)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"more than weights, \w+\.mkdir would have to be run .*only the state_dict"):
        open_teacher(path, digits, model="resnet8")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil(made)))
    with pytest.raises(UserError, match="cannot read"):
        open_teacher(tmp_path / "bare.pt", digits)
    assert not made.exists()
    torch.load(path, weights_only=False)  # it would have worked
    assert made.is_dir()


def test_other_objects_are_named(digits: Dataset, tmp_path: Path) -> None:
    for name, content in {
        "argparse.Namespace": {"net": bare(network()), "args": argparse.Namespace(lr=1)},
        "dgad_tk.models.resnet.ResNet": network().get_submodule("net"),
    }.items():
        torch.save(content, tmp_path / "t.pt")
        with pytest.raises(UserError, match=f"more than weights, {name} would have to be run"):
            open_teacher(tmp_path / "t.pt", digits)


def test_a_torchscript_file_is_not_run(digits: Dataset, tmp_path: Path) -> None:
    from exporters.export import export

    save_weights(tmp_path / "w.safetensors", network(), artifact())
    export(tmp_path / "w.safetensors", "torchscript", tmp_path / "t.pt")
    with pytest.raises(UserError, match="it is a TorchScript file, a program of its own"):
        open_teacher(tmp_path / "t.pt", digits)


def damaged() -> dict[str, tuple[str, bytes]]:
    buffer, legacy = io.BytesIO(), io.BytesIO()
    torch.save(bare(network()), buffer)
    torch.save(bare(network()), legacy, _use_new_zipfile_serialization=False)
    whole, old = buffer.getvalue(), legacy.getvalue()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("notes.txt", "hello")
    return {
        "empty": (".pt", b""),
        "text": (".pt", b"<html>404 Not Found</html>"),
        "cut short": (".pt", whole[: len(whole) // 2]),
        "end lost": (".pt", whole[:-10]),
        "legacy cut short": (".pth", old[: len(old) // 2]),
        "legacy head only": (".pth", old[:40]),
        "another archive": (".bin", archive.getvalue()),
        "not safetensors": (".safetensors", whole),
        "empty safetensors": (".safetensors", b""),
        "a number": (".ckpt", pickle.dumps(7)),
    }


@pytest.mark.parametrize("kind", damaged())
def test_damaged_files(digits: Dataset, tmp_path: Path, kind: str) -> None:
    suffix, content = damaged()[kind]
    path = tmp_path / f"t{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read '.*' as a teacher: .") as caught:
        open_teacher(path, digits, model="resnet8")
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch advises to load it unsafely
    assert len(caught.value.message) < 400 + len(str(path))


def test_unknown_suffixes_and_missing_files(digits: Dataset, tmp_path: Path) -> None:
    (tmp_path / "t.h5").write_bytes(b"?")
    with pytest.raises(UserError, match="expected .safetensors or .pt or"):
        open_teacher(tmp_path / "t.h5", digits)
    with pytest.raises(UserError, match="no such file or run folder"):
        open_teacher(tmp_path / "t.pt", digits)


def test_a_network_that_takes_no_such_images(digits: Dataset, tmp_path: Path) -> None:
    torch.save(network("torchvision:squeezenet1_0").state_dict(), tmp_path / "t.pt")
    with pytest.raises(UserError, match="the teacher torchvision:squeezenet1_0 takes no 1x8x8 images"):
        open_teacher(tmp_path / "t.pt", digits, model="torchvision:squeezenet1_0")


CPU = torch.device("cpu")


class Undoing(nn.Module):
    """What reads normalised images, made of what reads plain ones."""

    def __init__(self, net: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.net, self.mean, self.std = net, mean, std

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x * self.std + self.mean)
        return out


def test_a_good_teacher(digits: Dataset, victim: Victim) -> None:
    net = victim[0]
    x = torch.from_numpy(digits.train.take(slice(0, 300)) / np.float32(255))
    right = float((net(x).argmax(1).numpy() == digits.train.labels[:300]).mean())
    check = check_teacher(net, digits, device=CPU, limit=300, name="resnet8 0123abcd")
    assert (check.as_is, check.n, check.warnings) == (pytest.approx(right), 300, [])
    assert check.as_is > 0.9
    assert check.describe() == (
        f"teacher resnet8: {right:.1%} of 300 training images right as they are, "
        f"{check.other_reading:.1%} with the images normalised"
    )
    name = "my nets/a.py:build"
    assert check_teacher(net, digits, device=CPU, limit=9, name=f"{name} {64 * 'a'}").name == name
    assert check_teacher(net, digits, device=CPU).n == 1000
    assert check_teacher(net, digits, device=CPU, limit=10**6).n == len(digits.train)


def test_a_teacher_of_normalised_images_is_noticed(digits: Dataset, victim: Victim) -> None:
    mean, std = digits.statistics()
    teacher = nn.Sequential(OrderedDict(normalize=nn.Identity(), net=Undoing(victim[0], mean[0], std[0])))
    check = check_teacher(teacher, digits, device=CPU, limit=500)
    assert check.other_reading > check.as_is + 0.05  # from where on it is worth a warning
    (warning,) = [text for text in check.warnings if "normalised images" in text]
    near_mean, near_std = re.findall(r"--teacher-(?:mean|std) ([0-9.]+)", warning)
    assert (float(near_mean), float(near_std)) == pytest.approx((mean[0], std[0]), abs=0.01)


def test_a_teacher_that_normalises_and_should_not_is_noticed(digits: Dataset, victim: Victim) -> None:
    net = victim[0].get_submodule("net")
    teacher = nn.Sequential(OrderedDict(normalize=Normalize([0.9], [0.1]), net=net)).eval()
    check = check_teacher(teacher, digits, device=CPU, limit=500)
    assert check.normalises
    assert check.other_reading > 0.9 > check.as_is + 0.05
    assert any("leave out --teacher-mean and --teacher-std" in text for text in check.warnings)
    assert "without the teacher's normalisation" in check.describe()


def test_a_guessing_teacher_is_noticed(digits: Dataset) -> None:
    (warning,) = check_teacher(network(), digits, device=CPU, limit=200).warnings
    assert "guessing on 10.0%" in warning
    assert "--teacher-mean, --teacher-std" in warning


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_depthwise_kernels_do_not_make_a_teacher_grey(channels: int, suffix: str, tmp_path: Path) -> None:
    """As of a MobileNet: in safetensors the names are sorted, so that a depthwise kernel is the first."""
    tensors = {"conv_stem.weight": torch.zeros(8, channels, 3, 3), "blocks.conv_dw.weight": torch.zeros(8, 1, 3, 3)}
    path = tmp_path / f"net{suffix}"
    if suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    assert channels_of(path) == channels
