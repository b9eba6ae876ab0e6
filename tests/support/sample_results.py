"""Results as an evaluation leaves them, with names that want to be markup in every form."""

from typing import Any

from evaluators.results import Results

HOSTILE = {
    "</script><script>alert(1)</script>": None,
    "a|b": None,
    "\\|": None,
    "R&D 100% _x_ #1 $5 ~^{}": None,
    "\\input{/etc/passwd}": None,
    "two\nlines": "two\\nlines",
    "---": None,
    "'single' \"double\" `tick` ``": None,
    "!!python/object/apply:os.system ['id']": None,
    "\u202egnp.exe": "\\u202egnp.exe",
    "right\u200fmark": "right\\u200fmark",
    "@octocat": None,
    "[x](http://evil.example)": None,
    "![x](http://evil.example/a.png)": None,
    "https://evil.example/?a=b": None,
    "www.evil.example": None,
    "{0} {{1}}": None,
    "*": None,
    "[1ex]": None,
    "<!-- -->": None,
    "x\n---\n# y": "x\\n---\\n# y",
    "% comment": None,
    "déjà 猫": None,
}
"""Names of classes, files and rows to what a reader sees of them; None for the name itself."""

SEEN = {name: seen or name for name, seen in HOSTILE.items()}
SHA = "3f" * 32


def row(name: str, robust: int | None, /, n: int = 1000, **more: Any) -> dict[str, Any]:
    """A finished attack at 8/255, or with `robust` None one without a figure."""
    share = None if robust is None else robust / n
    return {
        "id": name,
        "name": name,
        "kind": "budget",
        "source": "white-box",
        "surrogate": None,
        "norm": "linf",
        "eps": 8 / 255,
        "params": {"steps": 10},
        "robust_accuracy": share,
        "robust": robust,
        "n": n,
        "ci95": None if share is None else (max(0.0, share - 0.03), min(1.0, share + 0.03)),
        "success": None if share is None else 0.5,
        "failed": None if share is None else 0.5,
        "median_l2": 0.5,
        "seconds": 2.5,
        "forward_passes": 100,
        "backward_passes": 50,
        "status": "done",
        "reason": "",
    } | more


RECORD: dict[str, Any] = {
    "schema": "dgad/artifact/1",
    "model": "resnet8",
    "classes": ["cat", "dog"],
    "input_shape": [3, 32, 32],
    "dataset": "cifar10",
    "method": "dgad",
    "teacher": "resnet20 0123",
    "threat": {"norm": "linf", "eps": 8 / 255, "steps": 10},
    "training": {"epochs": 200, "select_on": "val"},
}


def sample(**more: Any) -> Results:
    """Of 1,000 images, 712 right and 384 still under the worst attack; a min-norm row and one that was skipped."""
    skipped = {"status": "skipped", "reason": "there is no surrogate", "success": None, "median_l2": None}
    document: dict[str, Any] = {
        "created": "2026-03-04T05:06:07+02:00",
        "command": "dgad attack --model student.onnx",
        "model": {"path": "runs/student.onnx", "sha256": SHA, "format": "onnx", "metadata": RECORD},
        "dataset": {"name": "cifar10", "split": "test", "n": 1000, "sha256": "5a" * 32},
        "threat": {"norm": "linf", "eps": [8 / 255]},
        "seed": 0,
        "clean": {
            "accuracy": 0.712,
            "correct": 712,
            "n": 1000,
            "classes": [
                {"class": "cat", "n": 500, "correct": 400},
                {"class": "dog", "n": 500, "correct": 312},
            ],
        },
        "attacks": [
            row("pgd", 400),
            row("autoattack", 384, stages=[{"name": "apgd-ce", "broken": 328, "seconds": 1.5}]),
            row("cw2", None, kind="min-norm", norm="l2", eps=None, success=1.0, median_l2=0.751),
            row("square", 150, n=300),
            row("transfer:resnet20:pgd", None, name="pgd", source="transfer", surrogate="resnet20", **skipped),
        ],
        "worst_case": [
            {
                "norm": "linf",
                "eps": 8 / 255,
                "robust_accuracy": 0.384,
                "robust": 384,
                "n": 1000,
                "ci95": (0.354, 0.415),
                "classes": [
                    {"class": "cat", "n": 500, "robust": 94},
                    {"class": "dog", "n": 500, "robust": 290},
                ],
            }
        ],
        "twin": {"max_abs_diff": 1e-6, "argmax_agreement": 1.0},
        "checks": {
            "verdict": "high",
            "items": [{"name": "random", "verdict": "high", "detail": "the same images get the same answers"}],
        },
        "environment": {"dgad-tk": "0.1.0", "runtime": "onnxruntime 1.31.1", "batch_size": 500},
    }
    return Results.model_validate(document | more)


def doubtful(
    verdict: str = "warn", detail: str = "the outputs sum to 1: probabilities hide gradients"
) -> dict[str, Any]:
    """Checks that found something."""
    return {"verdict": verdict, "items": [{"name": "logits", "verdict": verdict, "detail": detail}]}


def hostile(name: str) -> Results:
    """One name wherever a stranger's text can stand."""
    record = RECORD | {"classes": [name, "dog"], "method": name, "teacher": name, "training": {name: name}}
    found = sample(
        command=f"dgad attack --model {name}",
        model={"path": name, "sha256": SHA, "format": "onnx", "metadata": record, "notes": [name]},
        dataset={"name": name, "split": "test", "n": 1000, "sha256": "5a" * 32, "classes": [name]},
        clean={"accuracy": 0.5, "correct": 5, "n": 10, "classes": [{"class": name, "n": 10, "correct": 5}]},
        attacks=[
            row("autoattack", 384),
            row(f"transfer:{name}:pgd", 300, name="pgd", source="transfer", surrogate=name, flags=[f"flag of {name}"]),
            row("pgd", None, status="failed", reason=f"error: {name}", success=None),
        ],
        checks=doubtful(detail=f"never right on clean images of '{name}'"),
        gates=[{"name": name, "passed": False, "required": f"at least {name}", "got": name, "detail": name}],
        uncompared=[name],
        environment={"runtime": name},
    )
    return found
