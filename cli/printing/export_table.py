"""What `dgad export` prints of a file that passed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporters.export import Exported


def print_export(written: "Exported") -> None:
    """Print what the comparison with the source found, set by set, and what the format has to report."""
    parity = written.parity
    allowed = parity.tolerance
    relative = f"{allowed.relative:g} relative, " if allowed.relative is not None else ""
    print(
        f"verified against its source (allowed: {relative}{allowed.agreement:.0%} equal predictions on images and PGD):"
    )
    print(f"  {'images':<8}{'n':>5}{'max |diff|':>12}{'mean |diff|':>13}{'relative':>10}  equal predictions")
    for name, each in parity.sets.items():
        print(
            f"  {name:<8}{each.compared:>5}{each.max_abs_diff:>12.1e}{each.mean_abs_diff:>13.1e}"
            f"{each.relative:>10.1e}  {each.agreement:.1%}"
        )
    if parity.adversarial:
        still = round(parity.survival * parity.adversarial)
        print(f"  {still} of the {parity.adversarial} PGD images that fool the source fool this file")
    if parity.not_judged:
        print(f"  not judged: {parity.not_judged}")
    for name, value in written.report.findings.items():
        if value != []:
            print(f"{_words(name)}: {_text(value, name)}")


def _text(value: object, name: str = "") -> str:
    """A value as people read it: shares as per cent, sizes in KiB."""
    if isinstance(value, dict):
        return ", ".join(f"{_words(key)} {_text(each, key)}" for key, each in value.items())
    if isinstance(value, list):
        return "; ".join(map(_text, value)) or "nothing"
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{value / 1024:,.0f} KiB"
    return f"{value:.1%}" if isinstance(value, float) else str(value)


def _words(name: str) -> str:
    return name.removesuffix("_bytes").replace("_", " ")
