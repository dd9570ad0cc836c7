# Everything starts from a fresh clone with Python 3.11+ and make: each target makes .venv first if it is not there.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: demo test test-all fuzz check bench format clean

demo: $(STAMP)
	$(BIN)/multibox demo --out demo

# What one waits for: all but the tests marked slow
test: $(STAMP)
	$(PYTEST)

# The rest: test and test-all together run each test once
test-all: $(STAMP)
	$(PYTEST) -m slow

# Properties with thousands of random examples each, and a minute of damaged files for every parser
fuzz: $(STAMP)
	$(PYTEST) -m "hypothesis or fuzz" --hypothesis-profile fuzz

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python scripts/budgets.py

bench: $(STAMP)
	$(BIN)/python benchmarks/ops.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/gpu.py
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/runtime_start.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "multibox needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf .venv demo runs
