"""What a model's answers tell: doubts about it, how far logits lie apart, intervals."""
