# Each target sets up the virtual environment .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS_TEST := test
EXTRAS_CHECK := check,ray,s3,huggingface,tensorboard

.PHONY: demo test check lint faults clean

demo: $(VENV)/.demo  ## run the digits recipe; print the accuracy table and where the results are
	$(BIN)/gvbsm run digits --out runs/digits

test: $(VENV)/.test  ## run the tests
	$(BIN)/python -m pytest

check: lint test  ## what CI runs: ruff, mypy, tests

lint: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

faults: $(VENV)/.check  ## the long fault suite (minutes)
	FAULTS=50 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults tests/plugins/test_ray.py -s

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet -e .
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet -e '.[$(EXTRAS_TEST)]'
	@touch $@

$(VENV)/.check: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet -e '.[$(EXTRAS_CHECK)]'
	@touch $@ $(VENV)/.test
