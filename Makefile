# make solve      set up what is missing and answer PROBLEM with the bundled model
# make test       set up what is missing, check the code and run the tests (at most 10 minutes on two cores)
# make test-all   the same with the slow tests
# make lint       only the checks: ruff, mypy, the floors of the house
# make clean      remove the environment
#
# Variables: PYTHON (3.11 or newer), PROBLEM, CONSTRAINTS (empty: the newest versions that fit, not the tested ones).

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
PROBLEM ?= Compute 17 + 25 - 9.
export PROBLEM

VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_ROOT_USER_ACTION=ignore $(BIN)/python -m pip --disable-pip-version-check --no-input
PINS := $(addprefix -c ,$(CONSTRAINTS))
TORCH := $(if $(CONSTRAINTS),$(shell grep '^torch==' $(CONSTRAINTS)),torch>=2.11)

.PHONY: solve test test-all lint clean
.DELETE_ON_ERROR:

solve: $(VENV)/.has-local
	@$(BIN)/openzaya solve "$$PROBLEM"

test: lint
	@$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: lint
	@$(BIN)/python -m pytest -m "not gpu"

lint: $(VENV)/.has-dev
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

clean:
	rm -rf $(VENV)

# A stamp says that an environment is complete; a change of its inputs installs again.
$(VENV)/.has-local: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "installing torch and openzaya into $(VENV) (once; some minutes)" >&2
	@$(PIP) install -q '$(TORCH)' || { echo "\
	$(TORCH) cannot be installed for $$($(BIN)/python -V): either it has no build for this system, or no package index can be reached.\
	 Any torch from 2.11 on will do: make solve CONSTRAINTS= takes the newest." >&2; exit 1; }
	@$(PIP) install -q $(PINS) -e '.[local]'
	@touch $@

$(VENV)/.has-dev: $(VENV)/.has-local
	@echo "installing what the tests need into $(VENV) (once)" >&2
	@$(PIP) install -q $(PINS) -e '.[local,eval,serve,train,dev]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "openzaya needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1); give another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu install python3-venv" >&2; exit 1; }
