"""What a square changes, computed by itself: against the whole network."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dgad_tk.artifacts.predictor import predictor_of_module
from dgad_tk.ascent.folded import Folded
from dgad_tk.models import build_model
from evaluators.attacks.autoattack.square import local as module_of_local
from evaluators.attacks.autoattack.square.local import Local
from evaluators.attacks.autoattack.square.reach import overwrites
from evaluators.attacks.autoattack.square.square import Square
from evaluators.attacks.autoattack.square.windows import Span
from evaluators.attacks.native import Victim
from evaluators.target.estimators import to_estimator

SIDE = 16


class Mixed(nn.Module):
    """Strides, kernels of 5, 3 and 1, paddings that do not fit, a sum of maps with different windows, and a BatchNorm
    that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 5, padding=2, groups=2)
        self.norm, self.down = nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, stride=2)
        self.point, self.last = nn.Conv2d(8, 8, 1, padding=1), nn.Conv2d(8, 8, 3, padding=(0, 1))
        self.head = nn.Linear(8, 4)
        nn.init.normal_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.norm(x + self.wide(x)))
        x = self.last(F.relu(self.point(self.down(x))))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class Opaque(nn.Module):
    """Its layers hang on what it is given, so that nothing can be said of them beforehand."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] if bool(x.sum() > 1) else x.flatten(1)[:, 3:6]


def nets() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        Mixed(),
        build_model("resnet8", in_channels=3, classes=4),
        build_model("wrn-10-1", in_channels=3, classes=4),
    ]


@pytest.mark.parametrize("number", [0, 1, 2], ids=["mixed", "resnet8", "wrn-10-1"])
@pytest.mark.parametrize("side", [1, 2, 3, 5])
@torch.no_grad()
def test_logits_are_those_of_the_whole_network(monkeypatch: pytest.MonkeyPatch, number: int, side: int) -> None:
    """At every place of the square, over several steps of which some are accepted; in float64, so that only errors
    of the windows could be seen."""
    monkeypatch.setattr(module_of_local, "PAYS", 1.0)
    monkeypatch.setattr(module_of_local, "TOGETHER", 0.0)
    net = Folded(nets()[number].eval().double())
    assert isinstance(net.net, fx.GraphModule)
    places = [(row, column) for row in range(SIDE - side + 1) for column in range(SIDE - side + 1)]
    count, asked = len(places), 0

    def counted(images: int) -> None:
        nonlocal asked
        asked += images

    x = torch.rand(count, 3, SIDE, SIDE, dtype=torch.float64)
    local = Local(net.net, counted)
    local.begin(x, side)
    assert local.ready
    generator = torch.Generator().manual_seed(1)
    points = x.permute(0, 2, 3, 1).contiguous()
    for step in range(3):
        corners = torch.tensor(places)[torch.randperm(count, generator=generator)] if step else torch.tensor(places)
        new = points.clone()
        for image, (row, column) in enumerate(corners.tolist()):
            new[image, row : row + side, column : column + side] = torch.rand(3, generator=generator)
        rows = None if step == 0 else torch.randperm(count, generator=generator)[: count // 2].sort().values
        some = torch.arange(count) if rows is None else rows
        found = local.ask(new.flatten(1), corners[some], rows)
        torch.testing.assert_close(found, net(new.permute(0, 3, 1, 2))[some], rtol=1e-9, atol=1e-9)
        accepted = torch.rand(len(some), generator=generator) < 0.5
        local.accept(accepted)
        points[some[accepted]] = new[some[accepted]]
    assert asked == 1 + 2 * count + 2 * (count // 2)  # one shows the sizes of the maps


def test_a_change_reaches_as_far_as_a_convolution_lets_it() -> None:
    """A convolution of ones over one changed pixel, at each place, tells by hand."""
    for kernel, stride, padding in [(3, 1, 1), (3, 2, 1), (1, 2, 0), (5, 1, 0), (3, 3, 2)]:
        extent = 11
        ones = torch.ones(1, 1, kernel)
        results = F.conv1d(torch.eye(extent)[:, None], ones, stride=stride, padding=padding)[:, 0] != 0
        span = Span.of_square(1, extent).through(kernel, stride, padding, results.shape[1])
        at = torch.arange(results.shape[1])
        inside = (at >= span.start[:, None]) & (at < span.start[:, None] + span.size)
        assert not (results & ~inside).any()
        assert span.size == max(1, int(results.sum(dim=1).max()))


def reads_and_writes(x: Tensor) -> Tensor:
    y = x * 2
    return F.relu(y, inplace=True) + y


def adds_in_place(x: Tensor) -> Tensor:
    y = x * 2
    z = y * 3
    return z.add_(y)


@pytest.mark.parametrize(("function", "expected"), [(reads_and_writes, True), (adds_in_place, False)])
def test_writing_into_what_another_reads_is_noticed(function: Callable[[Tensor], Tensor], expected: bool) -> None:
    assert overwrites(fx.symbolic_trace(function)) is expected


@pytest.mark.parametrize("broken", [False, True])
def test_square_finds_the_same_and_leaves_a_wrong_copy_alone(monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    """`broken`: the windows give other logits, which the first proposals of a size show."""
    torch.manual_seed(0)
    predictor = predictor_of_module(
        build_model("resnet8", in_channels=3, classes=10), (3, 32, 32), format="safetensors"
    )
    x = torch.rand(2, 3, 32, 32).numpy()
    y = predictor.predict(x).argmax(1)
    asked = []
    usual = Local.ask

    def ask(self: Local, proposals: Tensor, corners: Tensor, rows: Tensor | None) -> Tensor:
        logits = usual(self, proposals, corners, rows)
        asked.append(len(logits))
        return logits + broken * torch.rand(logits.shape)

    monkeypatch.setattr(Local, "ask", ask)
    monkeypatch.setattr(module_of_local, "TOGETHER", 0.0)
    found = Square(to_estimator(predictor), eps=0.002, queries=560, rescale=False).run(x, y).adversarials
    assert len(asked) == 1 if broken else len(asked) > 40
    monkeypatch.setattr(Local, "of", lambda victim: None)
    expected = Square(to_estimator(predictor), eps=0.002, queries=560, rescale=False).run(x, y).adversarials
    assert (found == expected).all()


def test_only_networks_whose_layers_are_known_are_taken() -> None:
    torch.manual_seed(0)
    predictor = predictor_of_module(
        build_model("resnet8", in_channels=3, classes=10), (3, 32, 32), format="safetensors"
    )
    assert Local.of(Victim(to_estimator(predictor))) is not None
    opaque = predictor_of_module(Opaque(), (3, 2, 2), format="safetensors")
    assert Local.of(Victim(to_estimator(opaque))) is None
