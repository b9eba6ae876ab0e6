"""What a model's answers say: doubts about it, how far its logits are apart, intervals of accuracies."""
