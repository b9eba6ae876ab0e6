"""The methods against the authors' released code: x', loss, every gradient and BatchNorm's statistics, in float64."""

import pytest
import torch
from golden import CASES, DATA, EPOCH, Golden, close, forward_trace

from dgad_tk.methods import Method, build_method

pytestmark = pytest.mark.portable


def test_every_oracle_is_held_against_something() -> None:
    assert {path.stem for path in DATA.glob("*.npz")} == set(CASES)


def check_gradients(golden: Golden, student: torch.nn.Module, prefix: str = "grad.") -> None:
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None
        if name == "0.bias":  # cancels in train-mode BatchNorm
            assert parameter.grad.abs().max() < 1e-12
        else:
            assert close(parameter.grad, golden[prefix + name]), name


@pytest.mark.parametrize("name", CASES)
def test_step_equals_released_code(name: str) -> None:
    method_name, options, terms = CASES[name]
    golden, method = Golden(name), build_method(method_name, options)
    student = golden.network("student")
    with forward_trace(student) as trace:
        step = golden.run(method, student, batch=golden.batch(epoch=EPOCH.get(name, 0)))

    assert step.x_adv is not None
    assert close(step.x_adv, golden["x_adv"])
    assert close(step.loss.detach(), golden["loss"])
    assert close(step.logits.detach(), golden["student_logits_adv"])
    for ours, theirs in terms.items():
        assert close(step.terms[ours], golden[theirs]), ours
    check_gradients(golden, student)

    assert len(trace) == len(golden.arrays["forward_order"])
    for at, (mean, variance) in enumerate(trace):
        assert close(mean, golden["bn_trace.running_mean"][at])
        assert close(variance, golden["bn_trace.running_var"][at])
    assert int(student[1].num_batches_tracked) == int(golden["student_after.1.num_batches_tracked"])


def test_iads_parts_equal_the_stored_ones() -> None:
    golden = Golden("iad1_after")
    step = golden.run(build_method("iad", {}), golden.network("student"), batch=golden.batch(epoch=60))
    trust = golden["teacher_weight"]
    assert close(step.terms["distill"], golden["kl_per_sample.distill"].mean())
    assert close(step.terms["introspection"], ((1 - trust) * golden["kl_per_sample.introspection"]).mean())
    paper = build_method("iad", {"teacher_weighted": True})
    weighted = golden.run(paper, golden.network("student"), batch=golden.batch(epoch=60)).terms["distill"]
    assert close(weighted, (trust * golden["kl_per_sample.distill"]).mean())


def test_intended_mobilenet_loss_equals_the_mended_parenthesis() -> None:
    golden = Golden("dgad_mobilenetv2")
    student = golden.network("student")
    step = golden.run(build_method("dgad", {"pcr_weight": 10.0, "mobilenet_loss": "intended"}), student)
    assert close(step.loss.detach(), golden["intended.loss"])
    check_gradients(golden, student, "intended.grad.")


def test_pcr_off_ignores_the_mobilenet_branch_as_released() -> None:
    golden = Golden("dgad_alp_off")
    student = golden.network("student")
    step = golden.run(build_method("dgad", {"pcr_weight": 0.0, "mobilenet_loss": "released"}), student)
    assert close(step.loss.detach(), golden["loss"])


def test_the_golden_vectors_can_fail() -> None:
    """A wrong weight, or BatchNorm in train mode inside the attack, is noticed."""
    golden = Golden("dgad_resnet")
    wrong_weight: Method = build_method("dgad", {"pcr_weight": 5.0001})
    assert not close(golden.run(wrong_weight, golden.network("student")).loss.detach(), golden["loss"])
    wrong_mode = build_method("dgad", {"bn_in_attack": "train"})
    student = golden.network("student")
    golden.run(wrong_mode, student)
    assert not close(student[1].running_mean, golden["student_after.1.running_mean"])
