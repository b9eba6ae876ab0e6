"""Networks of a user's own by name: how they are found, called and hashed, and every way in which they are wrong."""

import hashlib
import sys
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from own_networks import written

from dgad_tk.common import UserError
from dgad_tk.models import build_model, check_input, find_model, own, source_said
from dgad_tk.models.own import names_code, own_network
from dgad_tk.models.trial import check_rebuilt


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of networks in the working folder."""
    monkeypatch.chdir(tmp_path)
    return written(tmp_path / "nets" / "mine.py")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nets/mine.py:build", True),
        ("C:\\nets\\mine.py:build", True),
        ("package.module:build", True),
        ("os:abort", True),
        ("resnet8", False),
        ("wrn-16-2", False),
        ("torchvision:resnet18", False),
        ("timm:resnet18", False),
        ("python:Net", False),
        ("", False),
    ],
)
def test_which_names_are_code(name: str, code: bool) -> None:
    assert names_code(name) is code


@pytest.mark.parametrize("function", ["build", "turned_round", "by_position", "open_ended"])
def test_arguments_go_by_name_or_by_position(mine: Path, function: str) -> None:
    model = build_model(f"{mine}:{function}", in_channels=2, classes=5)
    assert model(torch.rand(3, 2, 8, 8)).shape == (3, 5)


def test_a_function_of_classes_alone_gets_these(mine: Path) -> None:
    assert build_model(f"{mine}:of_classes", in_channels=1, classes=4)(torch.rand(2, 1, 8, 8)).shape == (2, 4)


def test_the_hash_is_of_the_bytes_that_ran(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = hashlib.sha256(mine.read_bytes()).hexdigest()
    assert source_said("nets/mine.py:build") == {"name": "nets/mine.py:build", "source_sha256": before}
    mine.write_text(
        mine.read_text() + "\n\ndef build(in_channels, classes):\n    return torch.nn.LazyLinear(classes)\n"
    )
    after = hashlib.sha256(mine.read_bytes()).hexdigest()
    own = own_network("nets/mine.py:build")
    assert own is not None
    assert own.sha256 == after != before
    assert isinstance(own(1, 10), torch.nn.LazyLinear)  # what was imported before is not kept
    assert capsys.readouterr().out == ""  # what the file prints is for people


def test_what_stands_beside_the_file_is_imported(mine: Path) -> None:
    (mine.parent / "blocks_of_mine.py").write_text("from torch import nn\n\nHEAD = nn.Linear\n")
    late = (
        "def build(in_channels, classes):\n    from blocks_of_mine import HEAD\n    return HEAD(in_channels, classes)\n"
    )
    other = written(mine.with_name("other.py"), late)
    path = list(sys.path)
    assert isinstance(find_model(f"{other}:build")(3, 10), torch.nn.Linear)
    assert sys.path == path


def test_a_module_below_the_working_folder(mine: Path) -> None:
    (mine.parent / "__init__.py").touch()
    (mine.parent.parent / "nets").rename(mine.parent.parent / "my_own_package")
    model = build_model("my_own_package.mine:build", in_channels=1, classes=3)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    said = source_said("my_own_package.mine:build")
    file = mine.parent.parent / "my_own_package" / "mine.py"
    assert said["source_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


WRONG = [
    ("nets/none.py:build", "cannot read 'nets/none.py', the source of model 'nets/none.py:build': no such file"),
    ("nets:build.py:build", "no such file"),
    ("nets/mine.py:biuld", "'nets/mine.py' has no function 'biuld' .did you mean 'build'"),
    ("nets/mine.py:NUMBER", "'nets/mine.py' has no function 'NUMBER', but a value of type int"),
    ("nets/mine.py:", "names no function"),
    ("nets/mine.py:without_arguments", "cannot be called with in_channels and classes: too many positional arguments"),
    ("nets/mine:build", "'nets/mine' is neither a file that ends in .py nor a module"),
    ("no_such_package.nets:build", "no module 'no_such_package' for model"),
    ("torchvison:resnet18", "unknown library 'torchvison' .*did you mean 'torchvision'"),
    ("json:loads", "json:loads cannot be called with in_channels and classes: missing a required argument: 's'"),
    ("python:Net", "was handed over in Python"),
]


@pytest.mark.parametrize(("name", "message"), WRONG)
def test_names_that_lead_to_nothing(mine: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_model(name, in_channels=1, classes=10)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "nothing returned no torch.nn.Module, but a value of type NoneType"),
        ("frozen", "frozen returned a network without weights to train"),
        ("raising", r"raising raised KeyError: 'two.nlines' .line \d+. for 1 channels and 10 classes"),
        ("leaving", "leaving raised SystemExit: 0"),
    ],
)
def test_functions_that_build_nothing(mine: Path, function: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_model(f"nets/mine.py:{function}", in_channels=1, classes=10)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("seven", r"does not turn 1x8x8 images into 10 logits: of two images it makes a tensor of shape \(2, 7\)"),
        ("two_channels", "takes no 1x8x8 images: .*2 channels"),
        ("Pair", "does not turn 1x8x8 images into 10 logits in training mode: of two images it makes a tuple"),
        ("Uncopied", "cannot be copied, and attacks run copies: there is one of me"),
        pytest.param(
            *("old_weight_norm", "cannot be copied once it has run, and attacks run copies: Only Tensors created"),
            marks=pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated"),
        ),
        ("Probable", "Probable returns probabilities, and training and attacks want logits"),
        ("Changing", "Changing changes the images that it is given, in place"),
        ("CutOff", "the logits of CutOff have no gradient with respect to the images"),
        ("Halved", "Halved has weights of torch.float16, and training wants torch.float32"),
        ("Empty", "Empty has weights without values, on torch's meta device"),
    ],
)
def test_networks_that_do_not_take_the_images(mine: Path, function: str, message: str) -> None:
    model = build_model(f"nets/mine.py:{function}", in_channels=1, classes=10)
    with pytest.raises(UserError, match=message):
        check_input(model, function, (1, 8, 8), 10, own=True)
    assert model.training


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("Listed", "Listed has weights that are not saved: built again, with all that its state_dict.. holds"),
        ("of_chance", "of_chance builds another network each time: the weights of the first do not fit the second"),
        ("one_for_all", "nets/mine.py:one_for_all returned the same network twice"),
    ],
)
def test_networks_that_cannot_be_built_again(mine: Path, function: str, message: str) -> None:
    build = partial(build_model, f"nets/mine.py:{function}", in_channels=1, classes=10)
    with pytest.raises(UserError, match=message):
        check_rebuilt(build, build(), function, (1, 8, 8))


@pytest.mark.parametrize("function", ["build", "lazy", "Noisy", "Tied"])
def test_networks_that_are_all_in_their_weights(mine: Path, function: str) -> None:
    build = partial(build_model, f"nets/mine.py:{function}", in_channels=1, classes=10)
    model = build()
    check_input(model, function, (1, 8, 8), 10, own=True)
    check_rebuilt(build, model, function, (1, 8, 8))
    assert model.training


def test_trying_a_network_changes_nothing_in_it(mine: Path) -> None:
    model = build_model("nets/mine.py:build", in_channels=1, classes=10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_input(model, "mine", (1, 8, 8), 10, own=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module_here\n", "importing '.*' for model '.*' raised ModuleNotFoundError: No module named"),
        ("def build(:\n", r"raised SyntaxError: .*line 1"),
        ("x = 1\ny = x / 0\n", r"raised ZeroDivisionError: division by zero \(line 2\)"),
        ("import sys\nsys.exit('not today')\n", r"raised SystemExit: not today \(line 2\)"),
    ],
)
def test_files_that_do_not_import(tmp_path: Path, source: str, message: str) -> None:
    file = written(tmp_path / "broken.py", source)
    with pytest.raises(UserError, match=message):
        find_model(f"{file}:build")
    assert not [name for name in sys.modules if name.startswith("dgad_own_broken")]


class Distribution:
    """What `importlib.metadata` gives of an installed package."""

    def __init__(self, name: str, version: str) -> None:
        self.name, self.version = name, version


def entry(name: str, value: str, package: str = "their-nets 1.2") -> EntryPoint:
    made = EntryPoint(name, value, own.GROUP)
    return made._for(Distribution(*package.split()))  # type: ignore[attr-defined]


@pytest.fixture
def installed(mine: Path, monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Entry points, as if a package with them were installed; the test may add others."""
    monkeypatch.syspath_prepend(str(mine.parent))
    found = [entry("theirs", "mine:build"), entry("resnet8", "mine:build")]
    monkeypatch.setattr(own, "entry_points", lambda group: found if group == own.GROUP else [])
    return found


def test_entry_points_are_models(installed: list[EntryPoint], mine: Path) -> None:
    model = build_model("theirs", in_channels=1, classes=6)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 6)
    assert source_said("theirs") == {
        "name": "theirs",
        "source_sha256": hashlib.sha256(mine.read_bytes()).hexdigest(),
        "package": "their-nets 1.2",
    }
    assert source_said("resnet8") == {}  # our own row comes first
    with pytest.raises(UserError, match="unknown model 'thiers' .did you mean 'theirs'"):
        find_model("thiers")


def test_entry_points_that_are_wrong(installed: list[EntryPoint]) -> None:
    installed += [entry("theirs", "mine:build"), entry("gone", "no_such_thing:build"), entry("bare", "mine:NUMBER")]
    installed += [entry("two", "mine:build"), entry("two", "mine:lazy", "other-nets 3"), entry("lost", "mine:biuld")]
    assert find_model("theirs")  # the same twice is one
    for name, message in (
        ("gone", "no module 'no_such_thing' for model 'gone'"),
        ("bare", "the entry point 'bare' of their-nets 1.2 is of type int"),
        ("two", "entry point of their-nets 1.2 and of other-nets 3 .name one of them by its function: mine:build"),
        ("lost", "the entry point 'lost' of their-nets 1.2 names no function: mine:biuld"),
    ):
        with pytest.raises(UserError, match=message):
            find_model(name)
