# Everything here works on a machine with nothing but make and Python 3.11 or newer; `make` alone lists what there is.

VENV      := .venv
BIN       := $(VENV)/bin
SEED      ?= 0
SCHEDULER ?= local
ARGS      ?=
# Each test starts processes, which would compile all they import, every time.
unexport PYTHONDONTWRITEBYTECODE
# Most tests wait for processes, so four run side by side; JOBS=0 runs one after the other.
JOBS      ?= 4
# What `make bench` runs: files of benchmarks/.
OF        ?= run backends tensor_backends guards

# -q twice: pip keeps quiet unless something is wrong.
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -q -c constraints.txt

# pip shows no warning of a build.
SAY_COMPILED = $(BIN)/python -c 'import rolecall.transport.codec._scan' 2>/dev/null || \
    echo "warning: transport/codec/_scan.c was not compiled (no C compiler?); calls are slower without it" >&2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo areal check test lint bench docs clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\): [^#]*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  make %-8s%s\n", $$1, $$2 }'

demo: $(VENV)/.rl $(if $(filter ray,$(SCHEDULER)),$(VENV)/.ray) ## a small RL run from start to end (SEED=0 SCHEDULER=local ARGS=)
	@$(BIN)/rolecall demo --scheduler $(SCHEDULER) --seed $(SEED) $(ARGS)

# AReaL's controllers run in the tests where its source is: $AREAL_SRC, or beside this checkout.
AREAL_SRC ?= $(firstword $(wildcard ../shared/areal/areal-*.tar.*))
export AREAL_SRC

areal: $(VENV)/.areal ## what AReaL's controllers need, for the tests and `make bench OF=areal`

test: lint $(if $(AREAL_SRC),$(VENV)/.areal) ## ruff, mypy --strict, then the tests (ARGS= goes to pytest)
	@echo "== pytest"
	@$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

check: lint ## ruff, mypy --strict, and the tests that need no cluster and no long wait
	@echo "== pytest, the quick ones"
	@$(BIN)/python -m pytest -q -n 3 -m 'not cluster and not slow' $(ARGS)

lint: $(VENV)/.dev ## ruff and mypy --strict alone
	@echo "== ruff"
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check . || { echo "not formatted as above: run $(BIN)/ruff format ." >&2; exit 1; }
	@echo "== mypy --strict"
	@$(BIN)/mypy

bench: $(VENV)/.dev ## side by side with Ray and Monarch, the backends, tensor backends, 1,024 guards (OF=run ARGS=--quick)
	@mkdir -p build/bench
	@for name in $(OF); do \
	    echo "== $$name"; \
	    $(BIN)/python benchmarks/$$name.py --json build/bench/$$name.json $(ARGS) || exit 1; \
	done

docs: $(VENV)/.dev ## the API reference, in build/docs/api
	@rm -rf build/docs/api
	@$(BIN)/python docs/reference.py build/docs/api
	@echo "the API reference is in build/docs/api/index.html"

clean: ## remove all that make made
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name .git -prune -o \( -name __pycache__ -o -name '*.egg-info' \) -type d -prune -exec rm -rf {} +
	@rm -f src/rolecall/transport/codec/_scan.*.so

# The stamps say which extras the one environment holds. The tests' extras include the demo's, never the other way
# round, so `make demo` on a fresh machine waits for no linter.
BUILT_FROM := pyproject.toml setup.py constraints.txt src/rolecall/transport/codec/_scan.c

$(VENV)/.rl: $(VENV)/.made $(BUILT_FROM)
	@echo "installing rolecall[rl] into $(VENV) ..."
	@$(PIP) -e '.[rl]'
	@$(SAY_COMPILED)
	@touch $@

$(VENV)/.ray: $(VENV)/.rl
	@echo "installing rolecall[ray] into $(VENV) ..."
	@$(PIP) -e '.[ray]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made $(BUILT_FROM) tests/rl/requirements.txt
	@echo "installing rolecall[dev] into $(VENV) ..."
	@$(PIP) -e '.[dev]'
	@$(PIP) --no-deps -r tests/rl/requirements.txt
	@$(SAY_COMPILED)
	@touch $(VENV)/.rl $(VENV)/.ray $@

$(VENV)/.areal: $(VENV)/.dev tests/areal/requirements.txt
	@echo "installing what AReaL's controllers need into $(VENV) ..."
	@$(PIP) -e '.[areal]' -r tests/areal/requirements.txt
	@touch $@

# PYTHON=... chooses the interpreter; otherwise the first of these that is new enough and can make an environment.
CANDIDATES := $(or $(PYTHON),python3 python3.11 python3.12 python3.13 python3.14 python)

$(VENV)/.made:
	@for python in $(CANDIDATES); do \
	    "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
	    echo "making $(VENV) with $$("$$python" --version) ..."; \
	    rm -rf $(VENV); "$$python" -m venv $(VENV) && touch $@; exit; \
	done; \
	echo "rolecall needs Python 3.11 or newer with its venv module, which none of these is: $(CANDIDATES)" >&2; \
	echo "install one (on Debian: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3.12" >&2; \
	exit 1
