"""The rules of the SARIF form: what each check of an evaluation looks for, and what to do about a finding."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """A kind of finding.

    Attributes:
        short: one sentence.
        help: what a finding means, and what to do.
    """

    short: str
    help: str


CHECKS: dict[str, Rule] = {
    "finite": Rule(
        "Clean images are answered with logits that are not finite.",
        "They count as wrong. Look for an overflow, for example of float16, or for a missing normalisation.",
    ),
    "clean": Rule(
        "Clean accuracy is no better than guessing.",
        "See that labels, the order of classes and the preprocessing are those of the training.",
    ),
    "constant": Rule(
        "Every clean image gets the same answer.",
        "No attack can change it, so robust accuracy says nothing. See that the file is the trained model.",
    ),
    "one answer": Rule(
        "One answer explains nearly all right images.",
        "The test images are mostly of one class. Evaluate on images that are balanced.",
    ),
    "order of classes": Rule(
        "The model seems to know its classes in another order.",
        "Give the images in the order of classes that the model was trained with.",
    ),
    "channels": Rule(
        "The model seems to want the colours in the order blue, green, red.",
        "Export it so that it takes red, green, blue.",
    ),
    "classes": Rule(
        "Some classes are never right on clean images.",
        "See that their labels are those of the training, and that the training had images of them.",
    ),
    "random": Rule(
        "The same images get other answers when asked again.",
        "Each verdict is one draw. Attack the average: AutoAttack's version rand.",
    ),
    "batch": Rule(
        "An image's answer depends on the batch that it is in.",
        "The figures hold for this batch size. Dynamic quantisation does that; static quantisation does not.",
    ),
    "rounding": Rule(
        "Logits are so large that rounding hides their differences.",
        "Attacks do not see small gains. Believe attacks on differences of logits, or scale the logits down.",
    ),
    "logits": Rule(
        "The outputs are probabilities and not logits.",
        "Their gradients vanish. Export the model without its last softmax.",
    ),
    "gradients": Rule(
        "There are no gradients, or they lead nowhere.",
        "Robust accuracy may come from attacks that could not search. Attack without gradients: the suite blackbox.",
    ),
    "finite gradients": Rule(
        "Some gradients have entries that are not finite.",
        "Searches go on without those entries, and may find less.",
    ),
    "saturated": Rule(
        "The cross-entropy has no gradient on some images.",
        "FGSM and PGD are blind there. Believe attacks on differences of logits, such as AutoAttack.",
    ),
    "eps 1": Rule(
        "An attack that may do anything to an image still leaves some right.",
        "Such an attack has to succeed always: gradients are masked, and weaker attacks found too little.",
    ),
    "twin": Rule(
        "Adversarial images of the differentiable twin do not break the runtime.",
        "The gradients are not those of the deployed function. Attack without gradients as well.",
    ),
    "loss": Rule(
        "The loss does not rise along the attack.",
        "The search does not work on this model. Try another step size, more steps or another loss.",
    ),
    "single step": Rule(
        "One step breaks more images than many.",
        "A sign of masked gradients: the search of several steps got stuck.",
    ),
    "more steps": Rule(
        "FGSM breaks more images than PGD.",
        "A sign of masked gradients: the search of several steps got stuck.",
    ),
    "white-box": Rule(
        "Attacks without gradients did better than those with, or ran alone.",
        "Attacks that know more have to find more. Run the suite full, and AutoAttack above all.",
    ),
    "last stage": Rule(
        "Square broke images that AutoAttack's gradients had left.",
        "A sign of masked gradients: the true robust accuracy may be lower.",
    ),
}
"""By the name of a check in `results.json`."""

ROWS: dict[str, Rule] = {
    "attack doubt": Rule(
        "An attack found something to doubt about its own result.",
        "Its message says what. The figure of that row may be too high.",
    ),
    "attack failed": Rule(
        "An attack failed, so it has no result.",
        "The worst case is without it, and may look better than it is. Run the attack again.",
    ),
    "attack skipped": Rule(
        "An attack was skipped, so it has no result.",
        "Its message says what it lacked.",
    ),
    "gate": Rule(
        "A demand on the results was not met.",
        "The model is less accurate or less robust than was asked for, or there is no figure to compare.",
    ),
}
"""Findings about a row or a gate."""

RULES = CHECKS | ROWS


def rule_id(name: str) -> str:
    """`dgad/order-of-classes`: stable, since code-scanning pages know findings by it."""
    return f"dgad/{name.replace(' ', '-')}"


def descriptor(name: str) -> dict[str, Any]:
    """A rule as SARIF has it."""
    rule = RULES[name]
    return {
        "id": rule_id(name),
        "name": name.title().replace(" ", "").replace("-", ""),
        "shortDescription": {"text": rule.short},
        "fullDescription": {"text": f"{rule.short} {rule.help}"},
        "help": {"text": rule.help},
        "defaultConfiguration": {"level": "warning"},
    }
