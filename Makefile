# Each target sets up the virtual environment .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS_TEST := test
EXTRAS_CHECK := check,ray,s3,huggingface,tensorboard
# Tests share the processor: one thread each.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL := -n $(WORKERS) --dist loadfile --durations=10
SEEDS ?= 20
LOWEST ?= /tmp/gvbsm-lowest

.DEFAULT_GOAL := help
.PHONY: help demo test check lint faults seeds lowest clean

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):[^#]*## */\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: $(VENV)/.demo  ## run the digits recipe; print the accuracy table and where the results are
	$(BIN)/gvbsm run digits --out runs/digits

test: $(VENV)/.test  ## run all but the slow tests (five minutes at most on two cores)
	$(PYTEST) $(PARALLEL) -m "not slow"

check: lint  ## what CI runs: ruff, mypy and every test
	$(PYTEST) $(PARALLEL)

lint: $(VENV)/.check  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

faults: $(VENV)/.check  ## every fault many times (minutes)
	FAULTS=50 $(PYTEST) tests/faults tests/plugins/test_ray.py -s

seeds: $(VENV)/.test  ## the quick tests under SEEDS=20 seeds, with one thread and with two
	for seed in $$(seq $(SEEDS)); do for threads in 1 2; do \
		echo "seed $$seed, threads: $$threads"; \
		GVBSM_TEST_SEED=$$seed OMP_NUM_THREADS=$$threads $(BIN)/python -m pytest -q --hypothesis-seed=$$seed \
			-m "not slow" $(TESTS) || exit 1; \
	done; done

lowest:  ## the quick tests in a fresh environment with the lowest versions that pyproject.toml allows
	rm -rf $(LOWEST)
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print("\n".join(project["dependencies"] + project["optional-dependencies"]["test"]))' \
		| sed 's/>=/==/' > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/pip install --quiet -e '.[$(EXTRAS_TEST)]' -c $(LOWEST)/lowest.txt
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest $(PARALLEL) -m "not slow"
	rm -rf $(LOWEST)

clean:  ## delete the environment and what was built
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
