"""Surrogates whose record has the classes in another order."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from shared import artifact
from torch import nn

from dgad_tk.artifacts.predictor import Predictor, predictor_of_module
from evaluators.plan.reordered import reordered

SHAPE = (1, 8, 8)
IMAGES = np.random.default_rng(0).random((12, *SHAPE), dtype=np.float32)


def known(classes: list[str]) -> Predictor:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, len(classes)))
    return predictor_of_module(net, SHAPE, format="safetensors", artifact=artifact(classes=classes))


@pytest.mark.parametrize("classes", [["fox", "cat", "dog"], ["background", "dog", "cat", "none", "fox"]])
def test_answers_and_gradients_follow_the_names(classes: list[str]) -> None:
    own = ["cat", "dog", "fox"]
    before = known(own)
    after = reordered(before, classes)
    assert after is not None
    assert after.classes == len(classes)
    names = [
        [each[k] for k in predictor.predict(IMAGES).argmax(1)] for each, predictor in ((own, before), (classes, after))
    ]
    assert names[0] == names[1]
    assert len(set(names[0])) > 1
    assert before.module is not None
    assert after.module is not None
    x = torch.from_numpy(IMAGES).requires_grad_()
    logits, ours = before.module(x), after.module(x)
    assert np.allclose(ours.detach(), after.predict(IMAGES), atol=1e-6)
    for name in own:
        theirs = torch.autograd.grad(logits[:, own.index(name)].sum(), x, retain_graph=True)[0]
        mine = torch.autograd.grad(ours[:, classes.index(name)].sum(), x, retain_graph=True)[0]
        assert torch.equal(theirs, mine)


def test_what_a_search_asks_follows_the_names_too() -> None:
    """Else a search on a surrogate of fixed batch size would look for the wrong classes, and find nothing."""
    before = known(["cat", "dog", "fox"])
    after = reordered(replace(before, search=before.predict), ["fox", "cat", "dog"])
    assert after is not None
    assert after.search is not None
    np.testing.assert_array_equal(after.search(IMAGES), before.predict(IMAGES)[:, [2, 0, 1]])


@pytest.mark.parametrize("classes", [["cat", "dog"], ["cat", "dog", "wolf"], ["cat", "dog", "Fox"]])
def test_other_classes_are_no_order(classes: list[str]) -> None:
    assert reordered(known(["cat", "dog", "fox"]), classes) is None


def test_without_a_record_nothing_says_the_order() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    assert reordered(predictor_of_module(net, SHAPE, format="torchscript"), ["a", "b", "c"]) is None
