"""What INT8 costs in robustness: an fp32 file and its INT8 export, the worst of several attacks for each image.

A rounded gradient can hide weakness, so that PGD through the INT8 file's own twin is not the whole truth, and rounded
answers hide from Square the small gains that it climbs by. Both files get the same four searches, each judged by ONNX
Runtime: PGD through the file's own twin, PGD transferred from the other file, Square on the file's own answers, Square
transferred from the other file. An image counts as robust where none of them succeeds; the files are compared image by
image.

    python benchmarks/int8_robustness.py student.onnx student.int8.onnx --limit 2000

Finished parts are kept in --store: the same command again goes on.
"""

import argparse
from pathlib import Path

import numpy as np

from cli.flags.images import ImageFlags
from dgad_tk.strangers.number_text import format_fraction
from evaluators.engine.evaluate import evaluate
from evaluators.engine.record import Evaluation
from evaluators.plan.rows import Surrogate, plan
from evaluators.verdict.paired import Paired, paired
from exporters.formats import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fp32", type=Path)
    parser.add_argument("int8", type=Path)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--store", type=Path, default=Path("int8-robustness"))
    arguments = parser.parse_args()

    predictors = {"fp32": load(arguments.fp32), "int8": load(arguments.int8)}
    artifact = predictors["fp32"].artifact
    assert artifact is not None, "expected files that dgad exported"
    split = ImageFlags().load(artifact).test.subset(arguments.limit)
    eps = artifact.threat["eps"]
    settings = {
        "pgd": {"steps": arguments.steps, "restarts": arguments.restarts},
        "square": {"queries": arguments.queries},
    }
    evaluations: dict[str, Evaluation] = {}
    for name, predictor in predictors.items():
        other = "int8" if name == "fp32" else "fp32"
        rows = plan(
            ["pgd", "transfer:pgd", "square", "transfer:square"],
            norm="linf",
            eps=[eps],
            surrogates=[Surrogate(other, predictors[other])],
            settings=settings,
        )
        evaluations[name] = evaluate(
            predictor,
            split,
            rows,
            batch_size=arguments.batch_size,
            store=arguments.store / name,
            on_progress=lambda p, name=name: print(f"  {name} {p.row}: {p.done}", flush=True),  # type: ignore[misc]
        )
    first, second = evaluations["fp32"], evaluations["int8"]
    print(f"{len(split)} test images of {artifact.dataset}, Linf {format_fraction(eps)}; {settings}")
    print(f"twin of the INT8 file: {second.twin}")
    columns = f"{'95 % interval':>18}{'only fp32':>11}{'only int8':>11}{'p':>8}"
    print(f"{'':<14}{'fp32':>8}{'int8':>8}{'difference':>12}{columns}")
    show("clean", first.clean_right, second.clean_right)
    for number, label in enumerate(["own PGD", "other's PGD", "own Square", "other's Square"]):
        units = [each.outcomes[number].unit for each in (first, second)]
        assert units[0] is not None
        assert units[1] is not None
        show(label, first.clean_right & ~units[0].broken, second.clean_right & ~units[1].broken)
    show("without last", *(without_last(each) for each in (first, second)))
    show("worst of all", first.held(eps), second.held(eps))


def without_last(evaluation: Evaluation) -> "np.ndarray":
    """Images that withstand all but the transferred Square."""
    held = evaluation.clean_right.copy()
    for outcome in evaluation.outcomes[:-1]:
        assert outcome.unit is not None
        held &= ~outcome.unit.broken
    return held


def show(label: str, first: "np.ndarray", second: "np.ndarray") -> Paired:
    """One line of the table."""
    found = paired(first, second)
    low, high = found.ci95
    print(
        f"{label:<14}{first.mean():>8.2%}{second.mean():>8.2%}{found.difference:>+12.2%}"
        f"{f'{low:+.2%} to {high:+.2%}':>18}{found.only_first:>11}{found.only_second:>11}{found.p:>8.3f}"
    )
    return found


if __name__ == "__main__":
    main()
