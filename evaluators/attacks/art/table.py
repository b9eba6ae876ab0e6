"""ART's own attacks by name (`art:NAME`).

A test runs every row on a torch module and on an ONNX file: it breaks images, stays in its ball if it has one, and
gives the same result twice. The other attacks of ART 1.20 were tried or read, and left out:

- AutoConjugateGradient, RescalingAutoConjugateGradient: on the cross-entropy they broke 4 to 21 % of the images where
  one step of FGSM broke 58 to 100 %. ThresholdAttack: 8 % where FGSM broke 58 %, and rounding takes it out of its ball.
- GeoDA: searches noise without end for an image that breaks, and writes a file into the working folder.
- Wasserstein: overflows on digits, and its ball is no Lp ball. ShadowAttack: one colour image at a time, judged by its
  total variation. SpatialTransformation, CompositeAdversarialAttack: they rotate, shift and recolour, in no ball.
- UniversalPerturbation, TargetedUniversalPerturbation: one perturbation for all images, so that an image's outcome
  belongs to its company. FeatureAdversaries: wants a guide image for each image.
- BrendelBethge: needs a package that ART does not declare.
- Patches and light (AdversarialPatch, AdversarialTexture, GRAPHITE, LaserAttack), and what is not for classifiers of
  images (detectors, trackers, speech, video, malware, trees, Gaussian processes, tables).
"""

import math
from collections.abc import Mapping
from typing import Any

import art.attacks.evasion
from art.estimators.classification.classifier import ClassifierMixin

from dgad_tk.config.threat import Norm
from evaluators.attacks.art.adapter import ArtBuild
from evaluators.attacks.spec import AttackSpec

SLOW_SAMPLES = 50
"""Images that ART's attacks without gradients are tried on. They ask thousands of questions, one image at a time."""


def _square(estimator: ClassifierMixin, arguments: dict[str, Any]) -> dict[str, Any]:
    """A first square that fits into an image that is none: of a share of its pixels, ART makes one that may not.

    On images that are squares ART's attack stays as it is. What it raises there, at 4x4 pixels, is told in its row.
    """
    height, width = estimator.input_shape[1:]
    if height == width:
        return arguments
    if arguments["norm"] == 2 and height > width:
        raise ValueError("ART's SquareAttack in L2 takes no images that are higher than wide")
    most = min(height, width) - 1  # its corner is drawn from 0 up to what is left, which must be something
    if round(math.sqrt(arguments["p_init"] * height * width)) > most:
        arguments = {**arguments, "p_init": most**2 / (height * width)}
    return arguments


def _ensemble(estimator: ClassifierMixin, arguments: dict[str, Any]) -> dict[str, Any]:
    """The default members of ART's AutoAttack, with `restarts` and without progress bars."""
    restarts, iterations = arguments.pop("restarts"), arguments.pop("square_iterations")
    ball = {key: arguments[key] for key in ("norm", "eps", "batch_size")} | {"verbose": False}
    square = _square(estimator, ball | {"p_init": 0.8})  # ART's default
    apgd = ball | {"eps_step": arguments["eps_step"], "nb_random_init": restarts}
    losses = ["cross_entropy", "difference_logits_ratio"][: 2 if estimator.nb_classes > 2 else 1]
    members = [art.attacks.evasion.AutoProjectedGradientDescent(estimator, **apgd, loss_type=loss) for loss in losses]
    batch_size = arguments["batch_size"]
    members += [
        art.attacks.evasion.DeepFool(estimator, epsilon=1e-3, batch_size=batch_size, verbose=False),
        art.attacks.evasion.SquareAttack(estimator, **square, max_iter=iterations, nb_restarts=restarts),
    ]
    return {**arguments, "attacks": members}


_STEPS: Mapping[str, int | float] = {"max_iter": 10, "relative_step": 0.25}
_CARLINI: Mapping[str, int | float] = {
    "initial_const": 1.0,
    "binary_search_steps": 5,
    "max_iter": 50,
    "learning_rate": 0.01,
    "confidence": 0.0,
}
_BOUNDARY_WALK: Mapping[str, int | float] = {"max_iter": 10, "max_eval": 1000, "init_eval": 100, "init_size": 100}


def _inside(build: ArtBuild, *, norms: tuple[Norm, ...] = ("linf", "l2"), **more: Any) -> AttackSpec:
    """The row of an attack inside an eps-ball."""
    samples = None if more.get("needs_gradients", True) else SLOW_SAMPLES
    return AttackSpec(build=build, norms=norms, samples=samples, foreign=True, **more)


def _nearest(build: ArtBuild, *, norm: Norm = "l2", **more: Any) -> AttackSpec:
    """The row of an attack that minimises the distance in `norm`."""
    return _inside(build, norms=(norm,), kind="min-norm", **more)


ART_ATTACKS: dict[str, AttackSpec] = {
    "fgsm": _inside(
        ArtBuild("FastGradientMethod"),
        description="one step of size eps (Goodfellow et al., 2015)",
    ),
    "bim": _inside(
        ArtBuild("BasicIterativeMethod"),
        norms=("linf",),
        description="10 steps of eps/4 from the image itself (Kurakin et al., 2017)",
        params=_STEPS,
    ),
    "pgd": _inside(
        ArtBuild("ProjectedGradientDescent"),
        description="10 steps of eps/4 from a random start (Madry et al., 2018)",
        params={**_STEPS, "num_random_init": 1},
    ),
    "mim": _inside(
        ArtBuild("MomentumIterativeMethod"),
        description="10 steps of eps/4 with momentum 1 (Dong et al., 2018)",
        params={**_STEPS, "decay": 1.0},
    ),
    "auto-pgd": _inside(
        ArtBuild("AutoProjectedGradientDescent", fixed={"loss_type": "cross_entropy"}),
        description="APGD on the cross-entropy, 100 steps (Croce & Hein, 2020)",
        params={"max_iter": 100, "relative_step": 2.0, "nb_random_init": 1},
    ),
    "auto-pgd-dlr": _inside(
        ArtBuild("AutoProjectedGradientDescent", fixed={"loss_type": "difference_logits_ratio"}),
        description="APGD on the difference of logits ratio, 100 steps (Croce & Hein, 2020)",
        scale_free=True,
        params={"max_iter": 100, "relative_step": 2.0, "nb_random_init": 1},
        fewest_classes=3,
    ),
    "autoattack": _inside(
        ArtBuild("AutoAttack", more=_ensemble),
        description="ART's ensemble: APGD-CE, APGD-DLR, DeepFool, Square with 1,000 iterations",
        params={"restarts": 1, "square_iterations": 1000, "relative_step": 2.0},
        scale_free=True,
        asks=True,
        note="ART's ensemble is not the standard one: DeepFool for FAB-T, no targeted APGD",
    ),
    "square": _inside(
        ArtBuild("SquareAttack", more=_square),
        description="random search with squares, 1,000 iterations (Andriushchenko et al., 2020)",
        params={"max_iter": 1000, "nb_restarts": 1, "p_init": 0.8},
        scale_free=True,
        asks=True,
        needs_gradients=False,
    ),
    "virtual-adversarial": _inside(
        ArtBuild("VirtualAdversarialMethod", y="ignored", probabilities=True),
        norms=("l2",),
        description="one L2 step where the predictions turn most, by differences (Miyato et al., 2015)",
        params={"max_iter": 1, "finite_diff": 0.01},
        needs_gradients=False,
        note="one query for each pixel of an image and iteration",
    ),
    "deepfool": _nearest(
        ArtBuild("DeepFool", y="ignored"),
        description="to the nearest linearised boundary, overshoot 0.02 (Moosavi-Dezfooli et al., 2016)",
        params={"max_iter": 50, "epsilon": 0.02, "nb_grads": 10},
    ),
    "cw-l2": _nearest(
        ArtBuild("CarliniL2Method"),
        description="Carlini & Wagner (2017), L2, 5 search steps of 50 iterations",
        params=_CARLINI,
    ),
    "cw-linf": _nearest(
        ArtBuild("CarliniLInfMethod"),
        norm="linf",
        description="Carlini & Wagner (2017), Linf, one image at a time",
        params={
            "initial_const": 0.1,
            "const_factor": 10.0,
            "decrease_factor": 0.8,
            "max_iter": 10,
            "learning_rate": 0.1,
            "confidence": 0.0,
        },
        note="where its search fails that is no robustness",
    ),
    "cw-l0": _nearest(
        ArtBuild("CarliniL0Method"),
        description="Carlini & Wagner (2017), fewest pixels",
        params={**_CARLINI, "max_iter": 20},
        note="minimises the number of pixels, not the distance reported",
    ),
    "elasticnet": _nearest(
        ArtBuild("ElasticNet"),
        description="EAD: L2 with an L1 penalty (Chen et al., 2018), 5 search steps of 50 iterations",
        params={**_CARLINI, "beta": 0.001},
    ),
    "newtonfool": _nearest(
        ArtBuild("NewtonFool", y="ignored", probabilities=True),
        description="down the predicted class's probability, 50 steps (Jang et al., 2017)",
        params={"max_iter": 50, "eta": 0.01},
    ),
    "jsma": _nearest(
        ArtBuild("SaliencyMapMethod", y="target"),
        description="raises pairs of salient pixels (Papernot et al., 2016); target: the runner-up class",
        params={"theta": 1.0, "gamma": 0.1},
        note="minimises the number of pixels, not the distance reported",
    ),
    "hopskipjump": _nearest(
        ArtBuild("HopSkipJump", y="ignored"),
        description="along the boundary by predicted classes alone, L2 (Chen et al., 2020)",
        params=_BOUNDARY_WALK,
        needs_gradients=False,
    ),
    "hopskipjump-linf": _nearest(
        ArtBuild("HopSkipJump", y="ignored"),
        norm="linf",
        description="along the boundary by predicted classes alone, Linf (Chen et al., 2020)",
        params=_BOUNDARY_WALK,
        needs_gradients=False,
    ),
    "boundary": _nearest(
        ArtBuild("BoundaryAttack", y="ignored", fixed={"targeted": False}),
        description="a walk along the boundary by predicted classes alone (Brendel et al., 2018)",
        params={"max_iter": 200, "num_trial": 20, "sample_size": 20, "delta": 0.1, "epsilon": 0.1},
        needs_gradients=False,
    ),
    "signopt": _nearest(
        ArtBuild("SignOPTAttack", y="ignored", fixed={"targeted": False}),
        description="signs of directional derivatives by predicted classes alone (Cheng et al., 2020)",
        params={"max_iter": 20, "num_trial": 50, "k": 50, "query_limit": 4000},
        needs_gradients=False,
        fewest_classes=3,
    ),
    "simba": _nearest(
        ArtBuild("SimBA", fixed={"attack": "px", "batch_size": 1}, probabilities=True),
        description="one random pixel after another, steps of 0.2 (Guo et al., 2019)",
        params={"max_iter": 3000, "epsilon": 0.2},
        needs_gradients=False,
    ),
    "zoo": _nearest(
        ArtBuild("ZooAttack", fixed={"use_resize": False, "use_importance": False, "nb_parallel": 32, "batch_size": 1}),
        description="Carlini & Wagner by differences of predictions, one image at a time (Chen et al., 2017)",
        params={"max_iter": 100, "binary_search_steps": 1, "initial_const": 1.0, "learning_rate": 0.1},
        needs_gradients=False,
        note="where its search fails that is no robustness",
    ),
    "pixel": _nearest(
        ArtBuild("PixelAttack", fixed={"es": 1}),
        description="at most 5 pixels by differential evolution (Su et al., 2019)",
        params={"th": 5, "max_iter": 10},
        needs_gradients=False,
        fewest_classes=3,
        note="bounds the number of pixels, not the distance reported",
    ),
}
