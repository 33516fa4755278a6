# Two commands do all the set-up: `make solve` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROBLEM ?= Compute 17 + 25 - 9 + 48 - 31.

.PHONY: solve test test-all lint clean

solve: $(VENV)/.local
	$(BIN)/openzaya solve "$(PROBLEM)"

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports

# The environment, in two layers. Torch goes first and alone: its pinned version is the CPU build where the index has
# one, and a range would let pip choose gigabytes of CUDA packages.
$(VENV)/.local: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[local]"
	@touch $@

$(VENV)/.dev: $(VENV)/.local
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[local,eval,dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
