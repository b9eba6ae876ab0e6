"""The folder of an evaluation, made of outcomes that are known, without a model or an attack."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dgad_tk.answers.doubts import wilson
from dgad_tk.common import write_json
from evaluators.results import Results, Verdict

EPS = (0.1, 0.2)


def evidence_folder(
    folder: Path,
    *,
    classes: Sequence[str] = tuple("0123456789"),
    n: int = 400,
    shape: tuple[int, int, int] = (1, 8, 8),
    eps: Sequence[float] = EPS,
    verdict: Verdict = "high",
    path: str = "student.onnx",
    shown: int = 16,
    **more: Any,
) -> Path:
    """Write `results.json`, `samples.npz` and `gallery.npz`.

    Image i is of class i modulo the number of classes, and wrong from the start where i is a multiple of 10. Of the
    others, pgd breaks those whose remainder by 10 is 1 (at the first radius) or up to 2 (at the second), autoattack one
    more remainder at each radius, and cw2 all; fgsm breaks none. What breaks is taken for the next class.

    Args:
        shown: images in the gallery.
        more: keys of `results.json` that replace those made here.
    """
    k, ones = len(classes), np.arange(n) % 10
    label = np.arange(n) % k
    wrong, answer = ones == 0, (label + 1) % k
    draws = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "index": np.arange(n),
        "label": label,
        "clean_pred": np.where(wrong, answer, label),
        "image": np.arange(n).astype(np.uint64),
        "clean_confidence": np.full(n, 0.9, np.float32),
    }
    attacks, worst = [], []

    def add(id: str, broken: np.ndarray, radius: float | None, **keys: Any) -> None:
        m = len(broken)
        robust, attacked = int((~broken & ~wrong[:m]).sum()), int((~wrong[:m]).sum())
        arrays[f"robust/{id}"] = ~broken & ~wrong[:m]
        arrays[f"adv_pred/{id}"] = np.where(wrong[:m], -1, np.where(broken, answer[:m], label[:m]))
        arrays[f"confidence/{id}"] = np.where(wrong[:m], np.nan, 0.6).astype(np.float32)
        arrays[f"l2/{id}"] = np.where(wrong[:m], np.nan, 1 + np.arange(m) / m)
        arrays[f"linf/{id}"] = np.where(wrong[:m], np.nan, radius or 0.5)
        row = {"id": id, "name": id.rpartition(":")[2].partition("@")[0], "kind": "budget" if radius else "min-norm"}
        row |= {"source": "white-box", "surrogate": None, "norm": "linf" if radius else "l2", "eps": radius, "n": m}
        row |= {"description": "10 steps of eps/4 from a uniform start (Madry et al., 2018)"}
        row |= {"params": {}, "status": "done", "reason": "", "success": 1 - robust / attacked, "median_l2": 1.5}
        row |= {"failed": robust / attacked, "seconds": 2.5, "forward_passes": 100, "backward_passes": 50}
        if radius:
            row |= {"robust_accuracy": robust / m, "robust": robust, "ci95": wilson(robust, m)}
        attacks.append(row | keys)

    for number, radius in enumerate(eps, start=1):
        at = f"@{radius}" if len(eps) > 1 else ""
        first, last = (ones > 0) & (ones <= number), (ones > 0) & (ones <= number + 1)
        add(f"fgsm{at}", np.zeros(n, bool), radius)
        add(f"pgd{at}", first, radius)
        stages = [("apgd-ce", int(first.sum())), ("apgd-t", int((last & ~first).sum())), ("square", 0)]
        add(f"autoattack{at}", last, radius, stages=[{"name": s, "broken": b, "seconds": 1.5} for s, b in stages])
        other = {"source": "transfer", "surrogate": "resnet8"}
        add(f"transfer:resnet8:pgd{at}", ones == 1, radius, **other)
        held = ~wrong & ~last
        counts = [(name, int((label == c).sum()), int((held & (label == c)).sum())) for c, name in enumerate(classes)]
        worst.append(
            {"norm": "linf", "eps": radius, "robust_accuracy": held.sum() / n, "robust": int(held.sum()), "n": n}
            | {"ci95": wilson(int(held.sum()), n)}
            | {"classes": [{"class": name, "n": of, "robust": right} for name, of, right in counts if of]}
        )
    add("cw2", ~wrong, None)
    add("square", (ones == 1)[: n // 4], eps[-1])
    failed = {"status": "failed", "reason": "it raised <b>an error</b>", "robust": None, "robust_accuracy": None}
    attacks.append({**attacks[-1], "id": "art:zoo", "name": "art:zoo", "ci95": None, "success": None, **failed})
    clean = [(name, int((label == c).sum()), int((~wrong & (label == c)).sum())) for c, name in enumerate(classes)]
    detail = {"high": "outputs are logits"}.get(verdict, "the outputs sum to 1: probabilities hide gradients")
    document = {
        "schema": "dgad/results/1",
        "created": "2026-01-02T03:04:05+00:00",
        "command": f"dgad attack --model '{path}'",
        "model": {"path": path, "sha256": "ab" * 32, "format": "onnx", "size": 325_000, "metadata": None},
        "dataset": {"name": "pets", "split": "test", "n": n, "sha256": f"{n:064x}", "shape": shape}
        | {"classes": list(classes)},
        "threat": {"norm": "linf", "eps": list(eps)},
        "seed": 0,
        "clean": {"accuracy": float((~wrong).mean()), "correct": int((~wrong).sum()), "n": n}
        | {"classes": [{"class": name, "n": of, "correct": right} for name, of, right in clean if of]},
        "attacks": attacks,
        "worst_case": worst,
        "twin": {"max_abs_diff": 1e-6, "argmax_agreement": 1.0},
        "checks": {"verdict": verdict, "items": [{"name": "logits", "verdict": verdict, "detail": detail}]},
        "environment": {"python": "3.12", "runtime": "onnxruntime 1.31.1", "batch_size": 64, "processor": "a CPU"},
    }
    results = Results.model_validate(document | more)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "samples.npz", **arrays)
    picked = np.flatnonzero(ones == 1)[:shown]
    images = draws.random((len(picked), *shape), dtype=np.float32)
    np.savez_compressed(
        folder / "gallery.npz",
        clean=images,
        adversarial=np.clip(images + eps[-1] * np.sign(draws.standard_normal(images.shape)), 0, 1).astype(np.float32),
        row=np.array([f"autoattack@{eps[-1]}" if len(eps) > 1 else "autoattack"] * len(picked)),
        position=picked,
        label=label[picked],
        clean_confidence=np.full(len(picked), 0.9, np.float32),
        adv_pred=answer[picked],
        confidence=np.linspace(0.3, 0.9, len(picked), dtype=np.float32),
    )
    write_json(folder / "results.json", results.to_dict())
    return folder
