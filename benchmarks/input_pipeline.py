"""What it costs to bring augmented training images to the network, against a torchvision DataLoader.

Ours is what training does for each batch: `on_device` from the memory-mapped array, `augment`; with `--noise` the start
noise of the attack too. The DataLoader is torchvision's usual CIFAR recipe over the same uint8 array: to PIL,
RandomCrop with padding 4, RandomHorizontalFlip, ToTensor, in the process itself and in two workers that live through
all epochs. Both make float32 batches of the same size in random order from the same synthetic images, in turn, so that
a machine that slows down slows all; the first epoch of each is not counted. One thread unless `--threads` says more:
the DataLoader without workers has no more either. `ratio` is ours over the loader's in the same round, the median of
the rounds; what a row says of itself is the median too, and its extremes.

    python benchmarks/input_pipeline.py --repeats 5
"""

import argparse
import itertools
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from dgad_tk.ascent.inner_max import draw_noise
from dgad_tk.data import Augmentation, Split
from dgad_tk.data.augment import augment
from dgad_tk.data.batches import batch_positions, on_device
from dgad_tk.draws import Draws

CPU = torch.device("cpu")


class PilImages(Dataset[tuple[Tensor, int]]):
    """As torchvision's CIFAR10 hands out an image: an array in memory, one PIL image, its transforms."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], padding: int) -> None:
        self.images, self.labels = np.ascontiguousarray(images.transpose(0, 2, 3, 1)), labels.tolist()
        size = images.shape[2]
        self.transform = transforms.Compose([
            transforms.RandomCrop(size, padding=padding),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[row])), self.labels[row]


def ours(split: Split, batch_size: int, augmentation: Augmentation, noise: bool) -> Callable[[], Iterable[Tensor]]:
    """Epochs of the pipeline of training, each in an order of its own."""
    draws, epochs = Draws(seed=0), itertools.count()

    def epoch() -> Iterable[Tensor]:
        number = next(epochs)
        order = draws.permutation("order", len(split), epoch=number)
        for positions in batch_positions(order, batch_size, smallest=2):
            images, _, index = on_device(split, positions, CPU)
            batch = augment(images, augmentation=augmentation, draws=draws, index=index, epoch=number)
            if noise:
                draw_noise(draws, "noise", tuple(batch.shape[1:]), index, "uniform", epoch=number)
            yield batch

    return epoch


def theirs(images: PilImages, batch_size: int, workers: int) -> Callable[[], Iterable[Tensor]]:
    """Epochs of a DataLoader."""
    loader = DataLoader(
        images, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )  # workers start in the epoch that is not counted
    return lambda: (batch for batch, _ in loader)


def per_second(epoch: Callable[[], Iterable[Tensor]], n: int) -> float:
    """Images a second over one epoch."""
    begun, count = time.perf_counter(), 0
    for batch in epoch():
        count += len(batch)
    assert count == n, f"{count} images of {n}"
    return n / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--padding", type=int, default=4)
    parser.add_argument("--noise", action="store_true", help="draw the attack's start noise too")
    parser.add_argument("--workers", default="0,2", help="of the DataLoader, one row each")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    shape = (arguments.images, 3, arguments.size, arguments.size)
    labels = np.arange(arguments.images) % 10
    with tempfile.TemporaryDirectory() as folder:
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        (Path(folder) / "pixels").write_bytes(pixels.tobytes())
        mapped = np.memmap(Path(folder) / "pixels", dtype=np.uint8, mode="r", shape=shape)
        split = Split(base=mapped, index=np.arange(arguments.images), labels=labels)
        augmentation = Augmentation(padding=arguments.padding, flip=True)
        pil = PilImages(pixels, labels, arguments.padding)
        rows = {"dgad_tk": ours(split, arguments.batch_size, augmentation, arguments.noise)}
        for workers in map(int, arguments.workers.split(",")):
            rows[f"DataLoader, {workers} workers"] = theirs(pil, arguments.batch_size, workers)
        for epoch in rows.values():
            per_second(epoch, arguments.images)
        rounds = [
            {name: per_second(epoch, arguments.images) for name, epoch in rows.items()}
            for _ in range(arguments.repeats)
        ]

    print(
        f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}, numpy {np.__version__}"
    )
    print(
        f"{arguments.images} images 3x{arguments.size}x{arguments.size}, batches of {arguments.batch_size}, "
        f"{arguments.repeats} epochs each{', with start noise' if arguments.noise else ''}"
    )
    print(f"{'pipeline':<24}{'images/s':>10}{'min':>10}{'max':>10}{'ratio':>8}")
    for name in rows:
        found = [each[name] for each in rounds]
        ratio = statistics.median(each["dgad_tk"] / each[name] for each in rounds)
        print(f"{name:<24}{statistics.median(found):>10.0f}{min(found):>10.0f}{max(found):>10.0f}{ratio:>8.2f}")


if __name__ == "__main__":
    main()
