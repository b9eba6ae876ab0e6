"""TorchScript and torch.export."""
