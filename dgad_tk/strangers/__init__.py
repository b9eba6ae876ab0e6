"""What other people wrote: names, numbers in text, the first bytes of a file."""
