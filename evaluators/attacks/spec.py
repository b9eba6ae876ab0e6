"""The type of the rows of ATTACKS, and what every attack is told."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dgad_tk.common import UserError, nearest
from dgad_tk.config.threat import Norm
from dgad_tk.strangers import number_text
from evaluators.attacks.arguments import check_ball
from evaluators.attacks.passes import Count
from evaluators.attacks.result import SearchingAttack
from evaluators.target.estimators import PredictorBlackBox, PredictorClassifier

Kind = Literal["budget", "min-norm"]
Standing = Literal["no", "near", "whole"]
Estimator = PredictorClassifier | PredictorBlackBox
SAMPLES = "samples"
"""The setting of the number of images that a slow attack is tried on."""


@dataclass(frozen=True)
class Budget:
    """What every attack is told.

    Attributes:
        norm: of the ball, or the norm that a min-norm attack minimises.
        eps: radius of the ball, a fraction of 1; 0 for a min-norm attack.
        seed: of its draws.
        batch_size: images at a time.
    """

    norm: Norm
    eps: float
    seed: int
    batch_size: int

    def __post_init__(self) -> None:
        check_ball(self.norm, self.eps)


Build = Callable[[Estimator, Budget, Mapping[str, Any]], SearchingAttack]


@dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """A row of ATTACKS. Every attack is given the true labels, and moves away from them.

    Attributes:
        kind: `budget` answers inside an eps-ball. `min-norm` looks for the nearest adversarial image, and its results
            are success and distance.
        norms: norms that the attack has. A min-norm attack minimises the one asked for, or the first.
        build: makes the attack for an estimator, a budget and the row's parameters.
        description: one line for `dgad list attacks`.
        params: defaults that a user may change (`--set NAME.key=value`). They are written into the results.
        choices: allowed values of each parameter that is a word.
        samples: only so many of the first images are attacked, unless the user says otherwise; None for all.
        needs_gradients: predictions are not enough for it.
        fewest_classes: that it works with.
        searches: it searches inside the ball, so an image that breaks at one radius also breaks at larger ones. A
            single step of full size does not.
        single_step: it is one step of full size, and the row of this name takes more of them: that has to find at least
            as much.
        autoattack: whether its figure may be read as AutoAttack's, by which papers compare. `whole`: it has all stages
            of a published version. `near`: it is made to find as much in less time.
        scale_free: a saturated cross-entropy does not stop it, since it looks at differences of logits, or at answers.
        asks: it also searches by the runtime's own answers, which rounding cannot hide from it as it hides gradients.
        alarms: stages that search by answers alone, after gradients have been tried. What they break says that
            gradients were masked.
        passes: how many passes an image takes that it does not break; None where only a run can tell.
        averages: it averages over a model's random answers (expectation over transformation).
        foreign: another library's code. If it raises an error, its row fails and the others go on. Its draws depend on
            the images' places, not on their dataset indices.
        siblings: it climbs on `Predictor.siblings` too.
        exact: it follows gradients in float32 alone, whatever the precision of the search.
        note: a caution printed with its row.
    """

    kind: Kind = "budget"
    norms: tuple[Norm, ...] = ("linf", "l2", "l1")
    build: Build
    description: str
    params: Mapping[str, int | float | str] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    samples: int | None = None
    needs_gradients: bool = True
    fewest_classes: int = 2
    searches: bool = True
    single_step: str = ""
    autoattack: Standing = "no"
    scale_free: bool = False
    asks: bool = False
    alarms: tuple[str, ...] = ()
    passes: Count | None = None
    averages: bool = False
    foreign: bool = False
    siblings: bool = False
    exact: bool = False
    note: str = ""

    @property
    def lowers(self) -> bool:
        """Whether it can search in bf16: it is ours, follows gradients, and the runtime judges what it finds.

        An attack without a ball reports a distance, which the module's own logits decide; it keeps to float32.
        """
        return self.kind == "budget" and self.needs_gradients and not self.foreign and not self.exact

    def settings(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The row's `params` and `samples`, with `changes`.

        Args:
            name: of the row, for messages.
            changes: by key. A text is converted to the type of the default.

        Raises:
            UserError: an unknown setting, or a value of another type.
        """
        found = {**self.params, **({} if self.samples is None else {SAMPLES: self.samples})}
        for key, value in changes.items():
            if key not in found:
                raise UserError(
                    f"attack '{name}' has no parameter '{key}'",
                    hint=nearest(key, found) if found else "it has nothing to set",
                )
            default = found[key]
            read: int | float | str | None
            if isinstance(default, str):
                read, expected = value if value in self.choices[key] else None, f"one of {', '.join(self.choices[key])}"
            elif isinstance(default, int):
                read, expected = _number(value, least=1), "a whole number of at least 1"
            else:  # a real number may be 0, as Carlini & Wagner's confidence often is
                read, expected = _number(value, least=0.0), "a number of at least 0"
            if read is None:
                raise UserError(f"{name}.{key} must be {expected}, got {value!r}", hint=f"the default is {default}")
            found[key] = read
        return found

    def ready(self, name: str, estimator: Estimator, budget: Budget, params: Mapping[str, Any]) -> SearchingAttack:
        """The attack called `name`, ready to run.

        Raises:
            UserError: too few classes, or something that the attack itself refuses.
        """
        if estimator.nb_classes < self.fewest_classes:
            raise UserError(
                f"'{name}' needs at least {self.fewest_classes} classes, the model has {estimator.nb_classes}",
                hint="leave it out; autoattack replaces the stages that it cannot have",
            )
        return self.build(estimator, budget, params)


def _number(value: Any, *, least: int | float) -> int | float | None:
    """`value` as a number of the type of `least`; None if it is smaller or not such a number."""
    whole = isinstance(least, int)
    if isinstance(value, str):
        try:
            value = number_text.whole(value) if whole else number_text.real(value)
        except number_text.NotANumberError:
            return None
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    return value if number and least <= value < math.inf else None
