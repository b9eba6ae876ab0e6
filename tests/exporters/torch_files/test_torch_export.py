"""`.pt2` files: what opens them, and what can be done with them once they are open."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescent
from shared import ROOT, Victim, artifact
from torch import nn

from dgad_tk.artifacts.record import Artifact
from dgad_tk.artifacts.weights import load_model, save_weights
from dgad_tk.ascent.folded import folded
from dgad_tk.common import UserError
from evaluators.target.estimators import to_estimator
from exporters.export import export
from exporters.formats import EXPORTERS, load


@pytest.fixture(scope="module")
def file(victim: Victim, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pt2")
    save_weights(folder / "w.safetensors", victim[0], artifact())
    return export(folder / "w.safetensors", "torch-export", folder / "student.pt2").path


def module_of(file: Path) -> nn.Module:
    module = load(file, trust=True).network
    assert module is not None
    return module


def test_it_stays_in_eval_mode(file: Path) -> None:
    module = module_of(file)
    assert module.eval() is module
    assert module.train(False) is module
    nn.Sequential(module).eval()
    with pytest.raises(ValueError, match="stays in eval mode"):
        module.train()
    assert not any(each.training for each in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_it_can_be_copied_pickled_traced_and_moved(victim: Victim, file: Path) -> None:
    net, images, _ = victim
    x = torch.from_numpy(images)
    expected, module = net(x), module_of(file)
    for each in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), folded(module), module.double().float()):
        assert (each(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_art_attacks_it(victim: Victim, file: Path) -> None:
    """As ART does the source's own PyTorchClassifier."""
    net, images, labels = victim
    estimator = to_estimator(load(file, trust=True))
    attack = ProjectedGradientDescent(estimator, eps=0.15, eps_step=0.03, max_iter=10, verbose=False)
    adversarial = attack.generate(images, np.eye(10, dtype=np.float32)[labels])
    assert np.abs(adversarial - images).max() <= 0.15 + 1e-6
    with torch.no_grad():
        clean, attacked = ((net(torch.from_numpy(x)).argmax(1).numpy() == labels).mean() for x in (images, adversarial))
    assert attacked < clean - 0.3


def test_the_record_is_read_without_opening(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **more: object) -> None:
        raise AssertionError("opened")

    for opener in ("torch.export.load", "torch.load", "torch.jit.load", "pickle.loads", "pickle.load"):
        monkeypatch.setattr(opener, never)
    record = EXPORTERS["torch-export"].record(file)
    assert isinstance(record, Artifact)
    assert (record.model, record.input_shape) == ("resnet8", (1, 8, 8))


def test_it_has_no_paths_of_the_machine_it_is_from(file: Path) -> None:
    assert str(Path(torch.__file__).parent).encode() not in file.read_bytes()
    assert str(ROOT).encode() not in file.read_bytes()


class Pooled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


def save_program(path: Path, module: nn.Module, shape: tuple[int, ...], *dynamic: int) -> Path:
    spec = dict.fromkeys(dynamic, torch.export.Dim.AUTO)
    torch.export.save(torch.export.export(module, (torch.zeros(shape),), dynamic_shapes=(spec,)), path)
    return path


class Rows(nn.Module):
    """Logits of a batch of four, whose size stands in the graph, or whose images are mixed."""

    def __init__(self, mixed: bool) -> None:
        super().__init__()
        self.mixed = mixed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = x.mean(dim=(2, 3)) if self.mixed else x.reshape(4, 3, 16).mean(dim=2)
        return logits - logits.mean(dim=0) if self.mixed else logits


@pytest.mark.parametrize(("module", "batch"), [(Pooled(), None), (Rows(False), 4), (Rows(True), 4)])
def test_programs_of_a_fixed_batch_size(tmp_path: Path, module: nn.Module, batch: int | None) -> None:
    """They are asked in batches of their own size, unless the graph answers the same in others."""
    found = load(save_program(tmp_path / "fixed.pt2", module, (4, 3, 4, 4)), trust=True)
    assert (found.input_shape, found.classes, found.batch) == ((3, 4, 4), 3, batch)
    assert "was exported for 4 images at a time" in found.notes[-1]
    x = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    whole = torch.cat([x, x[-1:], x[-1:]])
    expected = torch.cat([module(part) for part in whole.split(4)])[:10]
    np.testing.assert_allclose(found.predict(x.numpy()), expected.numpy(), atol=1e-6)
    assert found.module is not None
    x.requires_grad_()
    found.module(x)[:, 0].sum().backward()
    assert x.grad is not None
    if module is not None and not getattr(module, "mixed", False):
        torch.testing.assert_close(x.grad[:, 0], torch.full((10, 4, 4), 1 / 16))


def test_files_from_elsewhere(tmp_path: Path) -> None:
    """Their graph says what they take."""
    plain = save_program(tmp_path / "plain.pt2", Pooled(), (2, 3, 4, 4), 0)
    found = load(plain, trust=True)
    assert (found.input_shape, found.classes, found.artifact) == ((3, 4, 4), 3, None)
    flat = save_program(tmp_path / "flat.pt2", nn.Linear(4, 3), (2, 4), 0)
    with pytest.raises(UserError, match="not an image classifier: it takes "):
        load(flat, trust=True)
    sizes = save_program(tmp_path / "sizes.pt2", Pooled(), (2, 3, 4, 4), 0, 2, 3)
    with pytest.raises(UserError, match="leaves its input's shape open"):
        load(sizes, trust=True)
    assert load(sizes, (3, 6, 6), trust=True).input_shape == (3, 6, 6)


def test_broken_files(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    for share in (0.0, 0.3, 0.99):
        (tmp_path / "cut.pt2").write_bytes(content[: int(share * len(content))])
        with pytest.raises(UserError, match=r"cut\.pt2"):
            load(tmp_path / "cut.pt2", trust=True)
        assert EXPORTERS["torch-export"].record(tmp_path / "cut.pt2") is None


def test_gradients_are_the_sources(victim: Victim, file: Path) -> None:
    images = victim[1]
    model, _ = load_model(file.with_name("w.safetensors"))

    def gradient(module: nn.Module) -> torch.Tensor:
        x = torch.from_numpy(images).double().requires_grad_()
        return torch.autograd.grad(module.double()(x).logsumexp(1).sum(), x)[0]

    expected = gradient(model)
    assert (gradient(module_of(file)) - expected).abs().max() <= 1e-9 * expected.abs().max()
