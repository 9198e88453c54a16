# Two commands on a fresh machine: `make demo` and `make test`. Everything else is a part of them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help setup lock demo examples test test-slow fuzz model-check bench lint clean

help:
	@echo "make demo       set up, then train the digits CNN on a local swarm of six peers"
	@echo "make examples   set up, then train BERT, GPT-2, ResNet-50 and a sorting GPT on a local swarm (ONLY=bert …)"
	@echo "make test       set up, then check the code and run the tests (under 15 minutes on 2 cores)"
	@echo "make test-slow  the long simulations: 1,000 seeds with 200 peers and more"
	@echo "make fuzz       100,000 random packages against the loader and the operations (COUNT=…, SEED=…)"
	@echo "make model-check  every state of the election's formal model: three minutes (needs spin and gcc)"
	@echo "make bench      every benchmark against its goals: hours, on a machine that does nothing else (BENCH=model_zoo …)"
	@echo "make lock       pin the newest versions of everything beside torch"
	@echo "make setup      only set up: a virtual environment in .venv with pinned versions"
	@echo "make lint       only ruff, mypy and the layer check"
	@echo "make clean      remove what the other targets made"

setup: $(READY)

$(READY): pyproject.toml constraints.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV): torch and some 100 packages, one to five minutes the first time …"
	@$(PIP) torch
	@$(PIP) --no-deps -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $(READY)

lock:
	$(PIP) uv
	$(BIN)/uv pip compile --universal --python-version 3.10 --extra dev --extra examples --extra bench --override overrides.txt \
		--no-header --no-annotate pyproject.toml | grep -v "'never'" > requirements.lock

demo: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python examples/demo.py

examples: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python examples/run.py $(ONLY)

# Whole swarms need the machine for themselves; all others run two at a time.
test: lint
	$(PYTEST) -m "not slow" -n 2 --dist loadfile --ignore tests/integration
	$(PYTEST) -m "not slow" tests/integration

test-slow: $(READY)
	$(PYTEST) -m slow

COUNT ?= 100000
SEED ?= 0

fuzz: $(READY)
	OMP_NUM_THREADS=1 nice $(BIN)/python -m tests.fuzz.fuzz_packages --count $(COUNT) --seed $(SEED)

model-check: $(READY)
	$(BIN)/python -m tests.model_check

BENCH ?= pipeline_sim planning model_zoo requirements memory compression averaging kappa pipeline async_penalty

bench: $(READY)
	@missed=; for name in $(BENCH); do \
		OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.$$name || missed="$$missed $$name"; \
	done; test -z "$$missed" || { echo "goals missed by:$$missed"; exit 1; }

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
