"""What a step tells of itself, on its way from the device."""

import torch

from dgad_tk.methods import Batch, Step


class Readout:
    """Loss, accuracy and terms of a step, whose backward pass has not been started.

    On a card the copy is queued behind the forward passes and before the backward pass. So `read` waits for the former
    alone, and the host prepares what comes next while the card is busy with the latter.
    """

    def __init__(self, step: Step, batch: Batch) -> None:
        with torch.no_grad():
            accuracy = batch.mean((step.logits.argmax(dim=1) == batch.y).to(step.logits.dtype))
            values = torch.stack([step.loss.detach(), accuracy, *step.terms.values()])
        self.names = ["loss", "accuracy", *step.terms]
        self.values = values.to("cpu", non_blocking=True)  # into page-locked memory, if it comes from a card
        self.copied: torch.cuda.Event | None = None
        if values.is_cuda:
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.copied.record()

    def read(self) -> dict[str, float]:
        """The values by their names, once they have come; the one wait for the device in a step."""
        if self.copied is not None:
            self.copied.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))
