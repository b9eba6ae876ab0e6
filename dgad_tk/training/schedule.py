"""The learning rate of each step."""

import math

from dgad_tk.config.training import TrainConfig, epoch_of


def learning_rate(config: TrainConfig, at: float) -> float:
    """The rate at a moment of the run, in epochs from its beginning."""
    share = at / config.epochs
    if config.schedule == "cosine":
        rest = max(config.epochs - config.warmup_epochs, 1e-9)
        rate = config.lr * 0.5 * (1 + math.cos(math.pi * max(at - config.warmup_epochs, 0) / rest))
    elif config.schedule == "cyclic":
        rate = config.lr * min(share / 0.4, (1 - share) / 0.6)
    elif config.schedule == "piecewise":
        passed = sum(math.floor(at) >= epoch_of(milestone, config.epochs) for milestone in config.milestones)
        rate = config.lr * 0.1**passed
    else:
        rate = config.lr
    return rate * min(at / config.warmup_epochs, 1) if config.warmup_epochs else rate
