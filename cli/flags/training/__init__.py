"""What the flags of `dgad train` name: networks, and files that a student starts from."""
