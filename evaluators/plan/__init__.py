"""What is to be run: suites, rows, surrogates."""
