"""What minimum-norm attacks share: the deployed runtime's word counts, and batches are even."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from victims import SHAPE, TwoClassLinear, as_torch, linear_split

from dgad_tk.config.threat import Norm
from evaluators.attacks.nearest.base import FURTHER, Search, annealed
from evaluators.attacks.nearest.fmn import FastMinimumNorm
from evaluators.target.ball import linf
from evaluators.target.estimators import to_estimator

N = 20


def runtime_of(shift: float) -> FastMinimumNorm:
    """FMN on a linear model whose runtime is surer of the label than its module, by `shift` of the logits."""
    net = TwoClassLinear().requires_grad_(False)
    predictor = as_torch(net, SHAPE)
    labels = linear_split(N).labels

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            logits = net(torch.from_numpy(images))
        clean = torch.from_numpy(linear_split(N).take(slice(None)) / np.float32(255))
        nearest = torch.cdist(torch.from_numpy(images).flatten(1), clean.flatten(1)).argmin(dim=1)
        own = torch.from_numpy(labels)[nearest]
        return (logits + shift * torch.nn.functional.one_hot(own, 2)).numpy()

    return FastMinimumNorm(to_estimator(replace(predictor, predict=predict, network=None)), norm="linf", steps=60)


def test_where_the_runtime_holds_the_perturbation_is_lengthened() -> None:
    split = linear_split(N)
    x, net = split.take(slice(None)) / np.float32(255), TwoClassLinear().requires_grad_(False)
    margins = net.margins(x, "linf")
    attack = runtime_of(0.05)
    found = attack.generate(x, split.labels)
    answers = attack.estimator.predict(found).argmax(axis=1)
    assert (answers != split.labels).all()
    true = margins + 0.025 / np.abs(net.w.detach().double().numpy()).sum()  # to where the runtime turns
    assert (linf(found, x) > true * (1 - 1e-5)).all()
    # Where the longest is too short, the runtime leads a second search, which ends the nearer.
    most = np.where(true < margins * FURTHER[-1], margins * FURTHER[-1], true)
    assert (most != margins * FURTHER[-1]).any()
    assert (linf(found, x) <= most * 1.05).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_where_the_module_gets_an_image_wrong_the_runtime_leads(norm: Norm) -> None:
    """As the twin of an INT8 file may. Its nearest adversarial image would be the image itself, which holds."""
    x, net = linear_split(N).take(slice(None)) / np.float32(255), TwoClassLinear().requires_grad_(False)
    other, runtime = TwoClassLinear().requires_grad_(False), as_torch(net, SHAPE)
    other.b += 0.02 * other.w.abs().sum()  # moves its boundary by 0.02 in Linf
    y = runtime.predict(x).argmax(axis=1)
    assert 2 < (as_torch(other, SHAPE).predict(x).argmax(axis=1) != y).sum() < N
    predictor = replace(as_torch(other, SHAPE), predict=runtime.predict, network=None)
    found = FastMinimumNorm(to_estimator(predictor), norm=norm, steps=100).generate(x, y)
    assert (runtime.predict(found).argmax(axis=1) != y).all()
    if norm == "linf":
        assert (linf(found, x) < 1.1 * net.margins(x, "linf") + 0.06).all()


def test_a_runtime_that_nothing_fools_gets_the_images_back() -> None:
    split = linear_split(N)
    x = (split.take(slice(None)) / np.float32(255))[split.labels == 0]
    predictor = replace(as_torch(TwoClassLinear(), SHAPE), predict=lambda x: np.eye(2)[[0] * len(x)], network=None)
    attack = FastMinimumNorm(to_estimator(predictor), norm="linf", steps=60)
    assert np.array_equal(attack.generate(x, np.zeros(len(x), dtype=np.int64)), x)


@pytest.mark.parametrize(("images", "most", "sizes"), [(10, 250, {10: 1}), (10, 4, {4: 2, 2: 1}), (9, 4, {3: 3})])
def test_batches_are_even(images: int, most: int, sizes: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """252 images are no batch of 250 and one of two."""
    attack = FastMinimumNorm(to_estimator(as_torch(TwoClassLinear(), SHAPE)), steps=3, batch_size=most)
    seen: Counter[int] = Counter()
    monkeypatch.setattr(attack, "descend", lambda run: seen.update([len(run.x)]))
    x = linear_split(images).take(slice(None)) / np.float32(255)
    assert np.array_equal(attack.generate(x, linear_split(images).labels), x)
    assert seen == sizes


def test_annealing_is_half_a_cosine() -> None:
    assert annealed(1.0, 0.01, 0.0) == 1.0
    assert annealed(1.0, 0.01, 0.5) == pytest.approx(0.505)
    assert annealed(1.0, 0.01, 1.0) == pytest.approx(0.01)


def test_in_l0_values_that_are_not_needed_are_taken_back() -> None:
    """Against the fewest that a linear model needs when the largest gain is taken first."""
    net, split = TwoClassLinear().requires_grad_(False), linear_split(N)
    x = split.take(slice(None)) / np.float32(255)
    attack = FastMinimumNorm(to_estimator(as_torch(net, SHAPE)), norm="l0", steps=1)

    def all_the_way(run: Search) -> None:
        weight = net.w * (1 - 2 * run.y.float())[:, None]  # down from the label; one channel, so the order is the same
        run.point = torch.where(weight > 0, 0.0, 1.0)
        run.point = run.x + (run.point - run.x) * weight.abs() / weight.abs().amax()  # the largest gains move most
        run.offer((run.point != run.x).sum(dim=1).float(), torch.ones_like(run.y, dtype=torch.bool))

    attack.descend = all_the_way  # type: ignore[method-assign]
    found = attack.generate(x, split.labels)
    changed = (found != x).sum(axis=(1, 2, 3))
    with torch.no_grad():
        assert (net(torch.from_numpy(found)).argmax(1).numpy() != split.labels).all()
    assert changed.max() < 36 / 2
    for image, clean, label in zip(found, x, split.labels, strict=True):  # without the smallest change it holds
        gap = np.abs(image - clean)
        smallest = gap == gap[gap > 0].min()
        assert net(torch.from_numpy(np.where(smallest, clean, image))[None]).argmax() == label
