# Two commands for a fresh machine: `make quickstart` and `make test`. Each sets up .venv with what it needs, once.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help quickstart setup test test-fast test-oldest-trl exactness trl-tests lint format docs protos gpu-check bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(VENV)/.quickstart  ## watch a small model get better, without GPU or network; installs only what that needs
	$(BIN)/grpo quickstart

setup: $(VENV)/.installed  ## install everything into .venv: training, DeepSpeed, server, tests

# Both stamps are redone only when what is to be installed has changed. After the whole installation the quickstart
# needs none of its own. Its packages are compiled when they are imported, most of which never are (--no-compile).
$(VENV)/.quickstart: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test $(VENV)/.installed -nt pyproject.toml -a $(VENV)/.installed -nt constraints.txt || \
		$(PIP) --no-compile --editable '.[quickstart]'
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[train,deepspeed,server,relevance,view,ray,dev]'
	touch $@

# Two processes of tests: half of a test's time is waiting for something that it started.
test: setup  ## run every test, in two processes
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: setup  ## run the tests that need no trainer and no ranks: seconds, for while you work
	$(BIN)/python -m pytest -m 'not slow'

# The oldest that pyproject.toml allows, beside the one in .venv, with all else from there.
OLDEST_TRL := $(shell sed -n 's/^ *"trl>=\([0-9.]*\)",$$/\1/p' pyproject.toml | head -n 1)
TRL_FOLDER := build/trl-$(OLDEST_TRL)

$(TRL_FOLDER):
	$(BIN)/python -m pip install --quiet --no-deps --target $@ "trl==$(OLDEST_TRL)"

test-oldest-trl: setup $(TRL_FOLDER)  ## run the tests that say most of TRL under the oldest that is allowed
	PYTHONPATH="$(CURDIR)/$(TRL_FOLDER)" $(BIN)/python -m pytest -n 2 --dist worksteal -m oldest_trl \
		tests/grpo_plugin/trainer tests/grpo_plugin/rewards tests/reward_server/client/test_remote_rewards.py

# As long as SETTINGS says (a minute for four or so). Another SEED draws others.
SETTINGS ?= 80
SEED ?= 1000
exactness: setup  ## compare weights with stock TRL's for many random settings, on one rank and on two
	EXACTNESS_SETTINGS=$(SETTINGS) EXACTNESS_SEED=$(SEED) $(BIN)/python -m pytest tests/end_to_end/test_random_settings.py

trl-tests: setup  ## run TRL's own GRPO tests with our trainer in place of theirs: make trl-tests TRL=path/to/trl-checkout
	$(BIN)/python tests/support/trl_suite/run.py $(TRL)

lint: setup  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## mend style where ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## write docs/options.md from the code
	$(BIN)/python docs/generate_options.py

protos: setup  ## generate the stubs of the wire from protos/
	$(BIN)/python protos/generate.py

gpu-check: setup  ## measure and check training, reward models and ZeRO on this machine's GPU, in four minutes
	$(BIN)/python tests/benchmarks/gpu_check.py

bench: setup  ## run every benchmark of tests/benchmarks that needs no GPU
	for bench in $(filter-out tests/benchmarks/gpu_check.py, $(wildcard tests/benchmarks/*.py)); do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

clean:  ## remove .venv, builds and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
