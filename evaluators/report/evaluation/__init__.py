"""The page of an evaluation: what was attacked, the answer in a sentence, whether to believe it, and the evidence."""
