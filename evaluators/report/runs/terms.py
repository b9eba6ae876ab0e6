"""What the terms of the losses are, in a line each, after the methods' own docstrings."""

from collections.abc import Mapping

TERMS: Mapping[str, str] = {
    "loss": "what training lowers: the terms, each times its weight, added up",
    "l_st": "standard training: how far the student is from the corrected teacher on clean images, where the teacher "
    "is wrong",
    "l_at": "adversarial training: how far the student is from the corrected teacher on attacked images, where the "
    "teacher is right",
    "pcr": "prediction consistency: how far the student's answers to an image and to the attacked one are apart",
    "ce_clean": "cross-entropy of the student's answers to clean images against the labels",
    "ce_adv": "cross-entropy of the student's answers to attacked images against the labels",
    "ce_soft": "cross-entropy of the student's answers to attacked images against a mixture of labels and teacher",
    "kl_clean": "how far the student is from the teacher on clean images (Kullback-Leibler divergence)",
    "bce": "boosted cross-entropy on attacked images: for the label, and against the likeliest wrong class",
    "robust": "how far the student's answers to an image and to the attacked one are apart, more where it is unsure",
    "pairing": "mean square by which the logits of an image and of the attacked one differ",
    "lse_clean": "squared error of the student's probabilities on clean images against the labels",
    "lse_adv": "squared error between the student's probabilities on attacked and on clean images",
    "introspection": "how far the student on attacked images is from itself on clean ones, more where the teacher is "
    "unsure; 0 until it begins",
    "igdm": "how far the student's change along the attack is from the teacher's",
    "entropy": "how unsure the teacher is of its answers to attacked images (entropy in nats)",
    "tau_least": "the smallest of the classes' temperatures, on attacked images",
    "tau_most": "the largest of the classes' temperatures, on attacked images",
    "kl_sure": "how far the student is from the teacher on clean images, more where the teacher is sure of the "
    "attacked one",
    "trades: kl": "how far the student's answers to an image and to the attacked one are apart",
    "kd: kl": "how far the student is from the teacher on clean images",
    "ard: kl": "how far the student on attacked images is from the teacher on clean ones",
    "iad: distill": "how far the student on attacked images is from the teacher on clean ones",
    "adaiad: distill": "how far the student is from the teacher on attacked images",
    "adaad: kl_adv": "how far the student is from the teacher on attacked images",
    "rslad: kl_adv": "how far the student on attacked images is from the teacher on clean ones",
}
"""By the name of a term; behind that of a method where its meaning depends on the method."""


def meaning(method: str, term: str) -> str:
    """What a term of a method is, as a clause; empty for one that is not ours.

    Args:
        method: as `--method` names it, perhaps with an add-on.
    """
    own = f"{method.partition('+')[0]}: {term}"
    return TERMS.get(own, TERMS.get(term, ""))
