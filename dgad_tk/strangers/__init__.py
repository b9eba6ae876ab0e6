"""What other people wrote: names, numbers in text, arrays, the first bytes of a file."""
