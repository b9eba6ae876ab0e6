"""What minimum-norm attacks share: the deployed runtime's word counts, and batches are even."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from victims import SHAPE, TwoClassLinear, as_torch, linear_split

from evaluators.attacks.nearest.base import FURTHER, annealed
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
    broken = answers != split.labels
    assert broken.mean() > 0.7
    assert np.array_equal(found[~broken], x[~broken])  # in vain, so it comes back as it was
    true = margins + 0.025 / np.abs(net.w.detach().double().numpy()).sum()  # to where the runtime turns
    assert (linf(found, x)[broken] > true[broken] * (1 - 1e-5)).all()
    assert (linf(found, x)[broken] <= margins[broken] * FURTHER[-1] * 1.02).all()


def test_a_runtime_that_nothing_fools_gets_the_images_back() -> None:
    split = linear_split(N)
    x = split.take(slice(None)) / np.float32(255)
    assert np.array_equal(runtime_of(1e6).generate(x, split.labels), x)


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
