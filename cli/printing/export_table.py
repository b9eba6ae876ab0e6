"""What `dgad export` prints of a file that passed."""

from typing import TYPE_CHECKING

from cli.printing.terminal import Heading, plain_table, say

if TYPE_CHECKING:
    from exporters.export import Exported


def print_export(written: "Exported") -> None:
    """Print what the comparison with the source found, set by set, and what the format has to report."""
    parity = written.parity
    allowed = parity.tolerance
    relative = f"{allowed.relative:g} relative, " if allowed.relative is not None else ""
    say(
        f"verified against its source (allowed: {relative}{allowed.agreement:.0%} equal predictions on images and PGD):"
    )
    names: list[Heading] = ["images", "n", ("max |diff|", "max"), ("mean |diff|", "mean"), ("relative", "rel.")]
    rows = []
    for name, each in parity.sets.items():
        differences = (each.max_abs_diff, each.mean_abs_diff, each.relative)
        rows.append([name, str(each.compared), *(f"{value:.1e}" for value in differences), f"{each.agreement:.1%}"])
    plain_table([*names, ("equal predictions", "equal")], rows)
    if parity.adversarial:
        still = round(parity.survival * parity.adversarial)
        say(f"{still} of the {parity.adversarial} PGD images that fool the source fool this file")
    if parity.not_judged:
        say(f"not judged: {parity.not_judged}")
    for name, value in written.report.findings.items():
        if value != []:
            say(f"{_words(name)}: {_text(value, name)}")


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
