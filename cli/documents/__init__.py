"""The JSON documents that commands print with `--json`, described; `table.py` lists them."""
