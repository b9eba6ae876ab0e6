"""Batches on a device, and a split that is kept there whole."""

import numpy as np
import torch

from dgad_tk.data import load_dataset
from dgad_tk.data.batches import Held, on_device


def test_a_split_kept_whole_gives_the_images_that_are_fetched_one_by_one() -> None:
    split, device = load_dataset("digits").train.subset(40), torch.device("cpu")
    held = Held(split, device)
    for positions in (np.array([3, 0, 39, 3]), np.arange(40)[::-1].copy(), np.array([], dtype=np.int64)):
        fetched = on_device(split, positions, device)
        kept = held.take(torch.from_numpy(positions))
        for ours, expected in zip(kept, fetched, strict=True):
            assert ours.dtype == expected.dtype
            assert torch.equal(ours, expected)
            assert len(ours) == len(positions)
    assert torch.equal(fetched[2], torch.from_numpy(split.index[positions]))
