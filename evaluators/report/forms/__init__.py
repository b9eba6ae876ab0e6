"""The forms of a result besides its files: one module each, the table in `table.py`."""
