# Two commands for a fresh machine: `make quickstart` and `make test`. Both set up .venv first, once.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-fast trl-tests lint docs protos bench setup clean

setup: $(VENV)/.installed

# Reinstalls only when what is to be installed has changed.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[train,deepspeed,server,relevance,view,dev]'
	touch $@

quickstart: setup
	$(BIN)/grpo quickstart

# Two processes of tests: half of a test's time is waiting for something that it started.
test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The tests that need no trainer and no subprocess ranks: seconds, for while you work.
test-fast: setup
	$(BIN)/python -m pytest -m 'not slow'

# TRL's own GRPO tests with our trainer in place of theirs: make trl-tests TRL=path/to/trl-checkout
trl-tests: setup
	$(BIN)/python tests/support/trl_suite/run.py $(TRL)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python docs/generate_options.py

protos: setup
	$(BIN)/python -m grpc_tools.protoc --proto_path=protos --python_out=. --pyi_out=. --grpc_python_out=. \
		protos/reward_server/v1/reward.proto

bench: setup
	for bench in tests/benchmarks/*.py; do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
