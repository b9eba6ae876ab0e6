"""Every method for a few epochs on one dataset with one teacher: does it train, and to what?

    python benchmarks/methods.py --dataset fashion-mnist --limit-train 10000 --epochs 3 --out runs/methods

One run folder a method, precision and seed; what is finished is not run again, and what was cut short goes on.
Accuracies are of the test images, at the dataset's eps; only the last epoch is looked at.
"""

import argparse
import json
from pathlib import Path

import torch

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import load_model
from dgad_tk.config.training import TrainConfig
from dgad_tk.data import load_dataset
from dgad_tk.draws import Draws
from dgad_tk.methods import METHODS
from dgad_tk.training.selection import accuracies
from dgad_tk.training.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="fashion-mnist")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--teacher-model", default="resnet20")
    parser.add_argument("--limit-train", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--precisions", default="fp32", help="of the inner maximisation: fp32, bf16 or both")
    parser.add_argument("--outer-precision", default="fp32")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shared = {
        "dataset": arguments.dataset,
        "data_dir": arguments.data_dir,
        "limit_train": arguments.limit_train,
        "epochs": arguments.epochs,
        "lr": arguments.lr,
        "schedule": "cosine",
        "select_every": arguments.epochs,
    }
    teacher = {**shared, "method": "pgd-at", "student": arguments.teacher_model, "precision": "bf16"}
    guide = run(arguments.out / "teacher", teacher)
    report("teacher", guide, arguments)
    for method in arguments.methods.split(","):
        for precision in arguments.precisions.split(","):
            for seed in arguments.seeds.split(","):
                own = {"method": method, "student": arguments.student, "precision": precision, "seed": int(seed)}
                own |= {"teacher": str(guide.path), "outer_precision": arguments.outer_precision}
                folder = run(arguments.out / f"{method}-{precision}-{seed}", shared | own)
                report(f"{method} {precision} seed {seed}", folder, arguments)


def run(path: Path, config: dict[str, object]) -> RunFolder:
    """Train, or go on, or do nothing."""
    folder = RunFolder(path)
    return folder if folder.finished() else train(TrainConfig.model_validate(config), out=path, resume=folder.exists())


def report(label: str, folder: RunFolder, arguments: argparse.Namespace) -> None:
    """One line: accuracies on the test images, and how fast it trained."""
    kept = folder.path / f"test-{arguments.test_images}.json"
    if not kept.is_file():
        model, _ = load_model(folder.best)
        dataset = load_dataset(arguments.dataset, data_dir=arguments.data_dir)
        split = dataset.test.subset(arguments.test_images)
        threat = folder.read_config().attack
        kept.write_text(json.dumps(accuracies(model, split, threat, Draws(0), device=torch.device("cpu"))))
    clean, robust = json.loads(kept.read_text())
    records = [record for record in folder.records() if record["event"] == "epoch"]
    pace = sum(record["samples_per_second"] for record in records) / len(records)
    loss = records[-1]["loss"]
    print(f"{label:<28} clean {clean:6.1%}  PGD-10 {robust:6.1%}  loss {loss:7.3f}  {pace:5.0f} images/s", flush=True)


if __name__ == "__main__":
    main()
