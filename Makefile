# Two commands: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SLOW := test-slow-kills test-slow-saving test-slow-disks test-slow-stops test-slow-processes \
	test-slow-fuzz-1 test-slow-fuzz-2 test-slow-fuzz-3 test-slow-fuzz-4 test-slow-shards \
	test-slow-soak test-slow-others

.PHONY: demo test $(SLOW) test-slow bench bench-long check lint types contracts clean

demo: $(VENV)/.installed
	$(BIN)/erg demo

test: $(VENV)/.tested
	$(BIN)/python -m pytest -m "not slow"

# Each under an hour on two cores; they say how far they are. ERG_SHARE=0.05 makes them that short.
test-slow: $(SLOW)

# Every method killed 18 times at random moments.
test-slow-kills: $(VENV)/.tested
	$(BIN)/python -m pytest tests/faults/test_killed.py -m slow -k bit_equal

# Killed 20 times at each moment of saving, also with temporary files on another disk.
test-slow-saving: $(VENV)/.tested
	$(BIN)/python -m pytest tests/faults/test_killed.py -m slow -k saving

test-slow-disks: $(VENV)/.tested
	$(BIN)/python -m pytest tests/faults/test_full_disk.py tests/faults/test_durable.py

# Asked to stop ten times by each signal in each phase.
test-slow-stops: $(VENV)/.tested
	$(BIN)/python -m pytest tests/faults/test_asked_to_stop.py -m slow

# Every method in one process, two, and one again; processes that die.
test-slow-processes: $(VENV)/.tested
	$(BIN)/python -m pytest tests/faults/test_elastic.py tests/faults/test_lost_processes.py

# Ten minutes for each kind of file.
test-slow-fuzz-1: $(VENV)/.tested
	$(BIN)/python -m pytest tests/faults/test_fuzz.py -m slow -k "image or zip or tar or parquet or npy"

test-slow-fuzz-2: $(VENV)/.tested
	$(BIN)/python -m pytest tests/faults/test_fuzz.py -m slow -k "not (image or zip or tar or parquet or npy)"

# Inputs that are kept where they reach other lines; needs atheris.
test-slow-fuzz-3: $(VENV)/.fuzzing
	$(BIN)/python -m pytest tests/faults/test_guided.py -m slow -k "image or zip or tar"

test-slow-fuzz-4: $(VENV)/.fuzzing
	$(BIN)/python -m pytest tests/faults/test_guided.py -m slow -k "not (image or zip or tar)"

# Goes on where it was stopped; SHARDS holds 5 GB.
SHARDS ?= $(VENV)/shards
test-slow-shards: $(VENV)/.installed
	$(BIN)/python benchmarks/shards/run.py $(SHARDS)

test-slow-soak: $(VENV)/.installed
	$(BIN)/python benchmarks/soak/run.py

# What else takes long: learning, and sums over many views.
test-slow-others: $(VENV)/.tested
	$(BIN)/python -m pytest -m slow --ignore tests/faults

# Beside the library lightly, in an environment of its own; on an otherwise idle machine.
DATA ?= ../shared/data
PEER := $(VENV)-peer

bench: $(VENV)/.installed $(PEER)/.installed
	$(BIN)/python benchmarks/views/run.py --peer-python $(PEER)/bin/python
	$(BIN)/python benchmarks/training_step/run.py $(DATA) --peer-python $(PEER)/bin/python --again
	$(BIN)/python benchmarks/embedding/run.py $(DATA) --peer-python $(PEER)/bin/python --again
	$(BIN)/python benchmarks/starting/run.py --again
	$(BIN)/python benchmarks/readme.py

# Needs matplotlib. A row or figure that fails is told; what comes after is measured all the same.
bench-long: $(VENV)/.tested $(PEER)/.installed
	$(BIN)/python benchmarks/training_step/breakdown.py $(DATA)
	$(BIN)/python benchmarks/training_step/ceiling.py
	$(BIN)/python benchmarks/ntxent/run.py --peer-python $(PEER)/bin/python
	$(BIN)/python benchmarks/cifar10/run.py $(DATA) --seeds 0 1 2
	$(BIN)/python benchmarks/eight_methods/run.py $(DATA)
	$(BIN)/python benchmarks/small_images/run.py $(DATA) --at-once 2
	$(BIN)/python benchmarks/small_images/run.py $(DATA) --minutes 60 --trials \
		choice "choice, residual 1 1" "choice, 24 px at first"
	$(BIN)/python benchmarks/time_to_accuracy/run.py $(DATA) --peer-python $(PEER)/bin/python
	-$(BIN)/python benchmarks/beside_lightly/run.py $(DATA) --peer-python $(PEER)/bin/python
	-$(BIN)/python benchmarks/methods/run.py $(DATA)
	$(BIN)/python benchmarks/methods/run.py --table
	$(BIN)/python benchmarks/weak_scaling/run.py
	$(BIN)/python benchmarks/audio_denoising/run.py $(DATA)
	$(BIN)/python benchmarks/inpainting/run.py $(DATA)
	$(BIN)/python benchmarks/anomalies/run.py $(DATA)
	$(BIN)/python benchmarks/binary_codes/run.py $(DATA)
	-$(BIN)/python benchmarks/autoencoders/run.py $(DATA)
	$(BIN)/python benchmarks/layers/run.py $(DATA)
	$(BIN)/python benchmarks/few_labels/run.py $(DATA)
	-$(BIN)/python benchmarks/figures/run.py
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

$(VENV)/.fuzzing: $(VENV)/.tested
	$(BIN)/python -m pip install --quiet --editable ".[test,fuzz]"
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
