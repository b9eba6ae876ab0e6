"""What each check looks for, and what to do about a doubt: one table for pages, texts and code scanning."""

from collections.abc import Mapping
from typing import NamedTuple


class Advice(NamedTuple):
    """About one kind of finding.

    Attributes:
        holds: what is true where nothing was found, as a clause.
        action: what to do where something was found, in sentences.
        fault: what is wrong then, in a sentence.
    """

    holds: str
    action: str
    fault: str


ADVICE: Mapping[str, Advice] = {
    "finite": Advice(
        "every clean image gets finite numbers as its answer",
        "Look for an overflow, for example of float16, or for a missing normalisation. Such images count as wrong.",
        "Clean images are answered with logits that are not finite.",
    ),
    "clean": Advice(
        "the model knows these images better than guessing does",
        "See that labels, the order of classes and the preprocessing are those of the training; of few images, take "
        "more. dgad inspect FILE --dataset NAME tries the usual preprocessings.",
        "Clean accuracy is no better than guessing.",
    ),
    "constant": Advice(
        "different images get different answers",
        "See that the file is the trained model. No attack can change a constant answer, so robust accuracy says "
        "nothing.",
        "Every clean image gets the same answer.",
    ),
    "one answer": Advice(
        "no single answer explains what the model gets right",
        "Evaluate on images that are balanced: these are mostly of one class.",
        "One answer explains nearly all right images.",
    ),
    "order of classes": Advice(
        "the model's classes are in the order of the labels",
        "Give the names in the order of the model's outputs: --classes a,b,c, or a file with a name a line. dgad "
        "inspect FILE --dataset NAME looks for that order, with each of the usual preprocessings.",
        "The model seems to know its classes in another order.",
    ),
    "channels": Advice(
        "the model gets the colours in the order that it wants",
        "Give a file that wants blue, green, red --channel-order bgr, and leave that out for one that does not. "
        "dgad inspect FILE --dataset NAME tries both, with the usual preprocessings.",
        "The model seems to want red and blue exchanged.",
    ),
    "classes": Advice(
        "every class is right on some of its clean images",
        "See that the labels of these classes are those of the training, and that the training had images of them.",
        "Some classes are never right on clean images.",
    ),
    "random": Advice(
        "the same image gets the same answer twice",
        "Attack the average of several answers: AutoAttack's version rand.",
        "The same images get other answers when asked again.",
    ),
    "batch": Advice(
        "an image's answer does not depend on the batch that it is in",
        "Quote the figures for this batch size alone, or quantise statically: dynamic quantisation takes its scales "
        "from the batch.",
        "An image's answer depends on the batch that it is in.",
    ),
    "rounding": Advice(
        "rounding hides nothing from attacks",
        "Scale the logits down, or believe only attacks on differences of logits, such as AutoAttack.",
        "Logits are so large that rounding hides their differences.",
    ),
    "logits": Advice(
        "attacks see logits, not probabilities",
        "Export the model without its last softmax: the gradients of probabilities vanish.",
        "The outputs are probabilities and not logits.",
    ),
    "gradients": Advice(
        "gradients lead somewhere on every clean image",
        "Attack without gradients as well: dgad attack --suite blackbox.",
        "There are no gradients, or they lead nowhere.",
    ),
    "finite gradients": Advice(
        "all gradients are finite numbers",
        "Look for a division by zero or a root of zero in the model. Searches go on without such entries, and may find "
        "less.",
        "Some gradients have entries that are not finite.",
    ),
    "saturated": Advice(
        "the cross-entropy has a gradient wherever the model has one",
        "Believe attacks on differences of logits, such as AutoAttack: FGSM and PGD are blind on these images.",
        "The cross-entropy has no gradient on some images.",
    ),
    "eps 1": Advice(
        "an attack that may do anything to an image always succeeds",
        "Attack without gradients as well, dgad attack --suite blackbox: gradients are masked here, so that weaker "
        "attacks found too little.",
        "An attack that may do anything to an image still leaves some right.",
    ),
    "twin": Advice(
        "gradients come from the function that is deployed",
        "Attack without gradients as well, dgad attack --suite blackbox: these gradients are not those of the "
        "deployed function.",
        "Adversarial images of the differentiable twin do not break the runtime.",
    ),
    "loss": Advice(
        "the loss rises along the attack",
        "Try another step size, more steps or another loss: the search does not work on this model.",
        "The loss does not rise along the attack.",
    ),
    "single step": Advice(
        "many steps break more images than one",
        "Run AutoAttack, whose Square needs no gradients: masked gradients made the search of several steps get stuck.",
        "One step breaks more images than many.",
    ),
    "more steps": Advice(
        "PGD breaks more images than its first step, FGSM",
        "Run AutoAttack, whose Square needs no gradients: masked gradients made the search of several steps get stuck.",
        "FGSM breaks more images than PGD.",
    ),
    "white-box": Advice(
        "attacks that see inside the model find at least as much as those that do not",
        "Run attacks with the model's own gradients and one without any: AutoAttack has both, and ends with Square.",
        "Attacks without gradients did better than those with, or one of the two kinds did not run.",
    ),
    "search precision": Advice(
        "float32 finds little that a search in bf16 had left",
        "Attack again with --search-precision fp32: on this model bf16 hides adversarial images from gradients.",
        "A last ascent in float32 broke images that the search in bf16 had left.",
    ),
    "last stage": Advice(
        "Square, which needs no gradients, finds little that AutoAttack's gradients had left",
        "Give Square more queries, and take the figure for an upper bound: masked gradients hid images from the "
        "earlier stages.",
        "Square broke images that AutoAttack's gradients had left.",
    ),
    "beyond autoattack": Advice(
        "stages beyond standard AutoAttack find little that it had left",
        "Quote autoattack-max and not autoattack, and look for what masks the gradients: rounding, thresholds, or an "
        "INT8 graph.",
        "Stages beyond standard AutoAttack broke images that it had left.",
    ),
    "quantised": Advice(
        "an INT8 file was attacked by way of its float32 file too",
        "Run dgad attack --attack autoattack-max with the float32 file in the same folder, or named by --sibling: an "
        "INT8 file that seems more robust than its float32 file mostly hides its weakness.",
        "No attack on this INT8 file saw past its rounding.",
    ),
}
"""By the name of a check in `results.json`. Other names there are ids of rows."""

ROWS: Mapping[str, Advice] = {
    "attack doubt": Advice(
        "no attack doubts its own result",
        "Do as its message says, or leave the row out of account: its figure may be too high.",
        "An attack found something to doubt about its own result.",
    ),
    "attack failed": Advice(
        "no attack failed",
        "Run the attack again: the worst case is without it, and may look better than it is.",
        "An attack failed, so it has no result.",
    ),
    "attack skipped": Advice(
        "no attack was skipped",
        "Give the attack what its message says that it lacked, or do without it.",
        "An attack was skipped, so it has no result.",
    ),
}
"""About an attack."""


def action(name: str, status: str = "done") -> str:
    """What to do about a doubt that a check, or the row of that name and status, has raised."""
    if status != "done":
        return ROWS[f"attack {status}"].action
    return ADVICE.get(name, ROWS["attack doubt"]).action
