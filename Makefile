# `make quickstart` and `make test` need nothing but Python 3.11+ and a network with PyPI: each makes .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-slow test-portable test-matrix check clean

# Train a robust teacher and a compact student on digits, export the student to ONNX, attack the file.
quickstart: $(STAMP)
	$(BIN)/dgad quickstart

test: $(STAMP)
	$(BIN)/python -m pytest -n auto -q

# What takes minutes: torchvision's large classifiers, every opset, half precision of every network.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -n auto -q -m slow

# Tests that rounding reaches, as three other processors would compute them; minutes. `test-matrix`: all tests, an hour.
test-portable: $(STAMP)
	$(BIN)/python benchmarks/test_matrix.py --portable

test-matrix: $(STAMP)
	$(BIN)/python benchmarks/test_matrix.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
