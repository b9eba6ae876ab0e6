"""The rows of an evaluation: attacks, radii and surrogates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.common import UserError
from dgad_tk.config.threat import LARGEST_EPS, Norm
from dgad_tk.strangers.number_text import format_fraction
from evaluators.attacks import ATTACKS
from evaluators.attacks.spec import SAMPLES, AttackSpec
from evaluators.plan.suites import TRANSFER
from evaluators.target.precision import Precision

SEARCH_PRECISION = "search_precision"
"""The setting of a row that does not search in float32."""


@dataclass(frozen=True)
class Surrogate:
    """A model that transfer examples are made on.

    Attributes:
        name: in row ids, unique.
        predictor: None if there is none, for `reason`.
    """

    name: str
    predictor: Predictor | None
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One row of the results: an attack, where its gradients come from, and how far it may go.

    Attributes:
        params: of the attack.
        limit: only so many of the first images are attacked; None for all.
        search_precision: in which the attack runs the module that it searches on.
        smaller: ascending radii below `eps` at which the same attack runs. Images that break there are not attacked
            again, since those adversarial images are inside this ball too.
    """

    id: str
    attack: str
    spec: AttackSpec
    params: Mapping[str, Any]
    norm: Norm
    eps: float | None
    surrogate: Surrogate | None = None
    smaller: tuple[float, ...] = ()
    limit: int | None = None
    search_precision: Precision = "fp32"

    @property
    def source(self) -> Literal["white-box", "black-box", "transfer"]:
        if self.surrogate is not None:
            return "transfer"
        return "white-box" if self.spec.needs_gradients else "black-box"

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that a user may change, as they are written into the results."""
        precision = {} if self.search_precision == "fp32" else {SEARCH_PRECISION: self.search_precision}
        return {**self.params, **({} if self.limit is None else {SAMPLES: self.limit}), **precision}

    @property
    def family(self) -> tuple[str, str]:
        """Equal for rows that differ in eps alone."""
        return self.attack, self.surrogate.name if self.surrogate else ""


def plan(
    names: Sequence[str],
    *,
    norm: Norm,
    eps: Sequence[float],
    surrogates: Sequence[Surrogate] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    search_precision: Precision = "fp32",
) -> list[Row]:
    """Rows for attack names from `suites.expand`. A budget attack gets one row per eps.

    A min-norm attack that does not have `norm` minimises the first that it has.

    Args:
        search_precision: of the rows whose attacks can search in it (`AttackSpec.lowers`). The others keep to float32.

    Raises:
        UserError: a setting or norm that an attack does not have, a radius that is no distance, or two rows with the
            same id.
    """
    if wrong := [each for each in eps if not 0 < each <= LARGEST_EPS]:
        raise UserError(f"eps must be above 0 and at most {LARGEST_EPS:g}, got {wrong[0]:g}", hint="such as 8/255")
    settings = settings or {}
    rows: list[Row] = []
    for full_name in names:
        name = full_name.removeprefix(TRANSFER)
        spec = ATTACKS[name]
        if spec.kind == "budget" and norm not in spec.norms:
            others = ", ".join(other for other in names if norm in ATTACKS[other.removeprefix(TRANSFER)].norms)
            hint = f"it has {', '.join(spec.norms)}" + (f"; in {norm} there is {others}" if others else "")
            raise UserError(f"attack '{name}' has no norm '{norm}'", hint=hint)
        params = spec.settings(name, settings.get(name, {}))
        limit = params.pop(SAMPLES, None)
        radii = eps if spec.kind == "budget" else [None]
        own_norm = norm if norm in spec.norms else spec.norms[0]
        sources: Sequence[Surrogate | None] = surrogates if full_name != name else [None]
        for surrogate in sources:
            for radius in radii:
                label = f"{TRANSFER}{surrogate.name}:{name}" if surrogate else name
                if radius is not None and len(eps) > 1:
                    label += f"@{format_fraction(radius)}"
                below = tuple(sorted(each for each in eps if radius is not None and each < radius))
                smaller = below if spec.searches else ()
                precision = search_precision if spec.lowers else "fp32"
                rows.append(Row(label, name, spec, params, own_norm, radius, surrogate, smaller, limit, precision))
    labels = [row.id for row in rows]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise UserError(f"two rows would be called '{twice}'", hint="give each eps and each surrogate once")
    return rows
