"""`python -m cli` is `dgad`."""

from cli.app import main

if __name__ == "__main__":
    main()
