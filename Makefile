# Two commands: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow-faults test-slow-fuzz-1 test-slow-fuzz-2 bench bench-long check lint types contracts clean

demo: $(VENV)/.installed
	$(BIN)/erg demo

test: $(VENV)/.tested
	$(BIN)/python -m pytest -m "not slow"

# Kills, full disks and other processes, about 40 minutes on two cores.
test-slow-faults: $(VENV)/.tested
	$(BIN)/python -m pytest tests/faults -m slow --ignore tests/faults/test_fuzz.py

# Ten minutes for each kind of file.
test-slow-fuzz-1: $(VENV)/.tested
	$(BIN)/python -m pytest tests/faults/test_fuzz.py -m slow -k "image or zip or tar or parquet or npy"

test-slow-fuzz-2: $(VENV)/.tested
	$(BIN)/python -m pytest tests/faults/test_fuzz.py -m slow -k "not (image or zip or tar or parquet or npy)"

# Beside the library lightly, in an environment of its own; on an otherwise idle machine.
DATA ?= ../shared/data
PEER := $(VENV)-peer

bench: $(VENV)/.installed $(PEER)/.installed
	$(BIN)/python benchmarks/views/run.py --peer-python $(PEER)/bin/python
	$(BIN)/python benchmarks/training_step/run.py $(DATA) --peer-python $(PEER)/bin/python --again
	$(BIN)/python benchmarks/embedding/run.py $(DATA) --peer-python $(PEER)/bin/python --again
	$(BIN)/python benchmarks/readme.py

bench-long: $(VENV)/.installed $(PEER)/.installed
	$(BIN)/python benchmarks/training_step/breakdown.py $(DATA)
	$(BIN)/python benchmarks/ntxent/run.py --peer-python $(PEER)/bin/python
	$(BIN)/python benchmarks/cifar10/run.py $(DATA) --seeds 0 1 2
	$(BIN)/python benchmarks/eight_methods/run.py $(DATA)
	$(BIN)/python benchmarks/small_images/run.py $(DATA)
	$(BIN)/python benchmarks/time_to_accuracy/run.py $(DATA) --peer-python $(PEER)/bin/python
	$(BIN)/python benchmarks/readme.py

check: lint types contracts

lint: $(VENV)/.developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.developing
	$(BIN)/pyright --pythonpath $(BIN)/python

contracts: $(VENV)/.developing
	$(BIN)/lint-imports

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

$(VENV)/.developing: $(VENV)/.tested
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

$(PEER)/.installed:
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet lightly pyarrow
	touch $@

clean:
	rm -rf $(VENV) $(PEER)
