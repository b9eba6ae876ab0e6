"""Teachers inside wrappers: any prefix, equal copies once, no normaliser dropped, no second network, bookkeeping."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from shared import randomise_batch_norm
from torch import Tensor, nn

from dgad_tk.common import UserError
from dgad_tk.data import Dataset, load_dataset
from dgad_tk.models import build_model
from dgad_tk.teachers.opening import open_teacher

State = dict[str, Tensor]
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.fixture(scope="module")
def colour() -> Dataset:
    """Digits in three channels, so that one channel taken for another would show."""
    digits = load_dataset("digits")
    return replace(digits, train=replace(digits.train, base=np.repeat(digits.train.base, 3, axis=1)))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(3)
    return randomise_batch_norm(build_model("resnet8", in_channels=3, classes=10).get_submodule("net")).eval()


def put(net: nn.Module, prefix: str = "", factor: float = 1.0) -> State:
    return {prefix + name: tensor * factor for name, tensor in net.state_dict().items()}


def norm(mean: str, std: str, shape: tuple[int, ...] = (1, 3, 1, 1)) -> State:
    return {mean: torch.tensor(MEAN).view(shape), std: torch.tensor(STD).view(shape)}


def assert_is(
    net: nn.Module, content: object, dataset: Dataset, folder: Path, *, normalised: bool = False, model: str = ""
) -> list[str]:
    """The file teaches what `net` computes; what was said about it."""
    torch.save(content, folder / "t.pt")
    said: list[str] = []
    teacher, name = open_teacher(folder / "t.pt", dataset, model=model, on_message=said.append)
    assert name.startswith("resnet8 ")
    x = torch.rand(2, 3, 8, 8)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(teacher(x), net((x - mean) / std if normalised else x), rtol=1e-5, atol=1e-5)
    return said


@pytest.mark.parametrize("model", ["", "resnet8"])
@pytest.mark.parametrize(
    "prefix", ["0.", "1.", "encoder.", "backbone.net.", "module.model.0.", "model._orig_mod.", "a.b.c.d.e."]
)
def test_any_prefix_that_all_names_share(
    colour: Dataset, net: nn.Module, tmp_path: Path, prefix: str, model: str
) -> None:
    assert assert_is(net, {"state_dict": put(net, prefix)}, colour, tmp_path, model=model) == []


def test_wrappers_inside_the_network(colour: Dataset, net: nn.Module, tmp_path: Path) -> None:
    """DataParallel around a part, `torch.compile` of a block, FSDP and activation checkpointing."""
    inside = {
        "layer1.": "layer1.module.",
        "layer2.0.": "layer2.0._orig_mod.",
        "layer3.": "layer3._fsdp_wrapped_module._checkpoint_wrapped_module.",
    }
    state = put(net)
    for plain, wrapped in inside.items():
        state = {name.replace(plain, wrapped, 1): tensor for name, tensor in state.items()}
    assert_is(net, state, colour, tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("0.mean", "0.std"),
        ("mu", "sigma"),
        ("module.normalizer.new_mean", "module.normalizer.new_std"),
        ("norm_layer.mean", "norm_layer.std"),
        ("data_mean", "data_std"),
        ("preprocess.pixelMean", "preprocess.pixelStd"),
        ("normalize._mean", "normalize._std"),
        ("NORM.MEAN", "NORM.STD"),
    ],
)
@pytest.mark.parametrize("shape", [(3,), (1, 3, 1, 1)])
def test_a_normaliser_under_any_name_is_applied(
    colour: Dataset, net: nn.Module, tmp_path: Path, names: tuple[str, str], shape: tuple[int, ...]
) -> None:
    assert_is(net, norm(*names, shape) | put(net, "1."), colour, tmp_path, normalised=True)


@pytest.mark.parametrize(
    "beside",
    [
        norm("mean", "std", (3,)),
        {"mean": list(MEAN), "std": STD},
        {"normalize": {"mean": MEAN, "std": STD}},
        {"preprocessing": norm("mean", "std")},
    ],
)
def test_a_normalisation_beside_the_state_dict_is_applied_and_said(
    colour: Dataset, net: nn.Module, tmp_path: Path, beside: dict[str, object]
) -> None:
    (line,) = assert_is(net, {"state_dict": put(net), **beside}, colour, tmp_path, normalised=True)
    assert "mean and " in line
    with pytest.raises(UserError, match="normalises by its own mean 0.4, 0.5, 0.6"):
        open_teacher(tmp_path / "t.pt", colour, mean=(0.1, 0.1, 0.1), std=STD)


def test_other_statistics_beside_the_state_dict_are_none(colour: Dataset, net: nn.Module, tmp_path: Path) -> None:
    others = {"accuracy": {"mean": [0.1, 0.2, 0.3], "std": [0.1, 0.1, 0.1]}, "mu": torch.tensor(0.9), "sigma": 0.25}
    assert assert_is(net, {"state_dict": put(net), **others}, colour, tmp_path) == []
    torch.save({"state_dict": put(net), "mean": torch.tensor(MEAN)}, tmp_path / "t.pt")
    with pytest.raises(UserError, match="holds a mean to normalise with, mean, but not both"):
        open_teacher(tmp_path / "t.pt", colour)


def test_copies_of_a_normaliser_in_two_precisions_are_one(colour: Dataset, net: nn.Module, tmp_path: Path) -> None:
    twice = norm("a.mean", "a.std") | {
        name.replace("a.", "b."): each.double() for name, each in norm("a.mean", "a.std").items()
    }
    twice["b.mean"] = torch.tensor(MEAN, dtype=torch.float64)
    assert_is(net, twice | put(net, "net."), colour, tmp_path, normalised=True)


def test_a_network_beside_its_attacker(colour: Dataset, net: nn.Module, tmp_path: Path) -> None:
    twice = put(net, "model.") | put(net, "attacker.model.")
    twice |= norm("normalizer.new_mean", "normalizer.new_std")
    twice |= norm("attacker.normalize.new_mean", "attacker.normalize.new_std")
    twice["attacker.model.bn1.num_batches_tracked"] = torch.tensor(7)  # not read in eval mode
    assert_is(net, twice, colour, tmp_path, normalised=True)


def without(state: State, name: str) -> State:
    return {key: tensor for key, tensor in state.items() if key != name}


REFUSED: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "two networks": (
        lambda net: put(net, "model.") | put(net, "attacker.model.", 2),
        "two networks that differ, under",
    ),
    "one of them bare": (
        lambda net: put(net) | put(net, "ema.", 2),
        "two networks that differ, under no prefix and un",
    ),
    "in containers of equal rank": (
        lambda net: {"first": put(net), "last": put(net, factor=2)},
        "two networks that differ, under 'first' and under 'last'",
    ),
    "of two kinds": (
        lambda net: put(net, "a.") | put(build_model("resnet20", in_channels=3, classes=10).get_submodule("net"), "b."),
        "two networks: a resnet20 under 'b' and a resnet8 under 'a'",
    ),
    "two normalisations": (
        lambda net: put(net) | norm("a.mean", "a.std") | {"b.mean": torch.tensor([0.1, 0.1, 0.1])},
        "two normalisations: the mean a.mean is 0.4, 0.5, 0.6, b.mean is 0.1",
    ),
    "half a normalisation": (
        lambda net: put(net) | {"0.new_std": torch.tensor(STD)},
        "holds a std .* 0.new_std, but not",
    ),
    "an inverse": (lambda net: put(net, "1.") | norm("0.mean", "0.inv_std"), "0.inv_std is unexpected"),
    "scale and shift": (
        lambda net: put(net, "1.") | norm("0.shift", "0.scale"),
        "0.shift is unexpected; 0.scale is unexpected .if only training reads it.* --teacher-mean and --teacher-std",
    ),
    "a BatchNorm in front": (
        lambda net: put(net, "1.") | {"0.running_mean": torch.tensor(MEAN), "0.running_var": torch.tensor(STD)},
        "0.running_mean is unexpected; 0.running_var is unexpected",
    ),
    "a mean image": (lambda net: put(net) | {"mean": torch.zeros(3, 8, 8), "std": torch.ones(3)}, "mean is unexpected"),
    "a second head": (
        lambda net: put(net, "model.") | {"model.rotation.weight": torch.ones(4, 64)},
        "does not fit a resnet8: rotation.weight is unexpected",
    ),
    "an adapter": (lambda net: put(net) | {"layer1.0.lora_A": torch.ones(1)}, "layer1.0.lora_A is unexpected"),
    "more blocks": (
        lambda net: put(net) | {"layer1.1.conv1.weight": torch.ones(16, 16, 3, 3)},
        "layer1.1.conv1.weight is un",
    ),
    "a quantiser's step": (lambda net: put(net) | {"conv1.step": torch.tensor(0.03)}, "conv1.step is unexpected"),
    "grey levels": (
        lambda net: put(net) | {"mean": torch.tensor([125.0, 125, 125]), "std": torch.tensor([51.0, 51, 51])},
        "normalises by mean 125, 125, 125 .*--teacher-mean 0.4902,0.4902,0.4902 --teacher-std 0.2000,0.2000,0.2000",
    ),
    "a std that broke down": (
        lambda net: put(net) | {"mean": torch.tensor(MEAN), "std": torch.tensor([0.2, 1e-7, 0.2])},
        "a std below a tenth of a grey level makes noise of its channel .the file is broken",
    ),
    "a std of 0": (
        lambda net: put(net) | {"mean": torch.tensor(MEAN), "std": torch.zeros(3)},
        "every std above 0 .its normalisation broke down",
    ),
    "a std of NaN": (
        lambda net: put(net) | {"mean": torch.tensor(MEAN), "std": torch.full((3,), torch.nan)},
        "every std above 0",
    ),
    "sparse": (
        lambda net: put(net) | {"conv1.weight": torch.ones(16, 3, 3, 3).to_sparse()},
        "sparse one .save it dense",
    ),
    "quantised": (
        lambda net: put(net) | {"bn1.bias": torch.quantize_per_tensor(torch.rand(16), 0.1, 0, torch.qint8)},
        "quantised one .save the network as it is before",
    ),
    "without values": (lambda net: put(net) | {"bn1.bias": torch.ones(16, device="meta")}, "one without values"),
    "too large for float32": (
        lambda net: put(net) | {"bn1.bias": torch.full((16,), 1e300, dtype=torch.float64)},
        "bn1.bias is not finite",
    ),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")  # deprecated, and in old files
@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_another_function_is_refused(colour: Dataset, net: nn.Module, tmp_path: Path, kind: str) -> None:
    build, message = REFUSED[kind]
    torch.save(build(net), tmp_path / "t.pt")
    with pytest.raises(UserError, match=message):
        open_teacher(tmp_path / "t.pt", colour)


BOOKKEEPING: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "AveragedModel": (lambda net: put(net, "module.") | {"n_averaged": torch.tensor(3)}, "n_averaged"),
    "thop": (
        lambda net: (
            put(net)
            | {
                f"{part}{name}": torch.zeros(1)
                for part in ("", "bn1.", "layer1.0.")
                for name in ("total_ops", "total_params")
            }
        ),
        "total_ops (3 times), total_params (3 times)",
    ),
    "an average's state": (
        lambda net: put(net, "model.") | {"ema.decay": torch.tensor(0.999), "ema.num_updates": torch.tensor(9)},
        "ema.decay, num_updates",
    ),
    "a loss": (lambda net: put(net, "net.") | {"criterion.weight": torch.ones(10)}, "criterion.weight"),
    "counters": (
        lambda net: (
            put(net) | {"global_step": torch.tensor(9), "epoch": torch.tensor([2.0]), "best_acc": torch.tensor(0.7)}
        ),
        "global_step, epoch, best_acc",
    ),
    "an optimizer": (
        lambda net: put(net, "m.") | {"optimizer.state.0.exp_avg": torch.ones(3)},
        "optimizer.state.0.exp_avg",
    ),
}


@pytest.mark.parametrize("model", ["", "resnet8"])
@pytest.mark.parametrize("kind", BOOKKEEPING)
def test_bookkeeping_is_left_aside_and_named(
    colour: Dataset, net: nn.Module, tmp_path: Path, kind: str, model: str
) -> None:
    build, named = BOOKKEEPING[kind]
    (line,) = assert_is(net, build(net), colour, tmp_path, model=model)
    assert f"also holds {named}: no part of the resnet8, left aside" in line


CONTAINERS: dict[str, tuple[Callable[[State, State], object], str]] = {
    "an average beside it": (
        lambda own, other: {"ema": other, "state_dict": own},
        "a resnet8 under 'ema' too, which differs",
    ),
    "an average of unknown name": (
        lambda own, other: {"weights_ema": other, "weights": own},
        "under 'weights_ema' too",
    ),
    "a teacher beside it": (lambda own, other: {"teacher": other, "net": own}, "under 'teacher' too"),
    "one in the other's list": (lambda own, other: {"model": own, "others": [other]}, "under 'others.0' too"),
    "an equal average": (lambda own, other: {"ema": own, "state_dict": {**own}}, ""),
    "an unknown name": (lambda own, other: {"generator": own, "epoch": 3}, ""),
    "in a tuple": (lambda own, other: (own, 0.9), ""),
    "an optimizer's copy": (lambda own, other: {"network": own, "optimizer": {"master": other}}, ""),
    "junk where it is expected": (lambda own, other: {"net": {"w": torch.ones(2)}, "weights": own}, ""),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_which_of_several_networks_counts_is_fixed_and_said(
    colour: Dataset, net: nn.Module, tmp_path: Path, kind: str
) -> None:
    build, expected = CONTAINERS[kind]
    said = assert_is(net, build(put(net), put(net, factor=2)), colour, tmp_path)
    assert len(said) == bool(expected)
    assert all(expected in line for line in said)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_other_floating_point_types(
    colour: Dataset, net: nn.Module, tmp_path: Path, dtype: torch.dtype, suffix: str
) -> None:
    state = {name: each.to(dtype) if each.is_floating_point() else each for name, each in put(net).items()}
    path = tmp_path / f"t.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    teacher = open_teacher(path, colour)[0].get_submodule("net")
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name


def test_a_part_of_a_sharded_checkpoint(colour: Dataset, net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00002.safetensors"
    save_file(dict(list(put(net).items())[:20]), path)
    for model in ("", "resnet8"):
        with pytest.raises(UserError, match="it is one part of several: join them"):
            open_teacher(path, colour, model=model)


def test_no_hint_asks_for_what_was_given(colour: Dataset, net: nn.Module, tmp_path: Path) -> None:
    """Neither for the flag of the network nor for those of the normalisation."""
    path = tmp_path / "t.pt"
    broken = [without(put(net), "conv1.weight"), put(net) | {"odd": torch.ones(2)}]
    broken += [put(net) | {"bn1.bias": torch.ones(2)}, put(net) | {"bn1.bias": torch.ones(16, dtype=torch.int8)}]
    for content in broken:
        torch.save(content, path)
        with pytest.raises(UserError, match="does not fit a resnet8") as caught:
            open_teacher(path, colour, model="resnet8")
        assert "name it" not in caught.value.hint
        assert "name its network" not in caught.value.hint
    torch.save(put(net) | {"mean": torch.ones(3)}, path)
    with pytest.raises(UserError, match="not both mean and std") as caught:
        open_teacher(path, colour, mean=MEAN, std=STD)
    assert "--teacher-mean" not in caught.value.hint
    with pytest.raises(UserError, match="got 1") as caught:
        open_teacher(path, colour, mean=(0.5,), std=(0.2,))
    assert caught.value.hint == "for example --teacher-mean 0.5,0.5,0.5"


def test_a_given_std_that_makes_noise_of_a_channel(colour: Dataset, net: nn.Module, tmp_path: Path) -> None:
    torch.save(put(net), tmp_path / "t.pt")
    with pytest.raises(UserError, match="--teacher-std is of pixels that vary, got 0.2, 1e-06, 0.2"):
        open_teacher(tmp_path / "t.pt", colour, mean=MEAN, std=(0.2, 1e-6, 0.2))


def test_a_run_says_what_it_left_aside(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dgad_tk.config.training import TrainConfig
    from dgad_tk.training.train import train

    monkeypatch.chdir(tmp_path)
    grey = build_model("resnet8", in_channels=1, classes=10).get_submodule("net")
    torch.save(put(grey, "module.") | {"n_averaged": torch.tensor(2)}, "t.pt")
    said: list[str] = []
    config = TrainConfig(method="adaad", teacher="t.pt", epochs=1, limit_train=20, batch_size=20)
    train(config, out=tmp_path / "run", on_message=said.append)
    assert any(line.startswith("note: 't.pt' also holds n_averaged") for line in said)
