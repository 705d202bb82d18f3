# make demo           a real model answers PROMPT
# make check          linters, type checker, fast tests
# make test           tests of every kind: about eight minutes on two cores
# make test-extended  more of the same kinds of tests; CI runs it after make test
# make test-all       both, tests that PyTorch and transformers judge (installs them), more drawn
#                     cases, other versions of JAX, and AWS's kernels where NKILIB names a checkout
# make lint           linters, type checker
# make docs           the site, in build/docs
# make dist           source distribution and wheel, in dist
PYTHON ?= python3
VENV ?= .venv
PROMPT ?= What is the capital of France?
DEMO_FLAGS ?=
PYTEST_FLAGS ?=
BIN := $(VENV)/bin

.PHONY: demo check test test-extended test-all test-oracle test-exhaustive test-nkilib test-simulator-without-jax mutation-check fuzz lint versions docs dist clean

demo: $(VENV)/.models
	$(BIN)/python -m jax_tkg.fetch_model
	$(BIN)/python -m jax_tkg.generate --prompt "$$PROMPT" $(DEMO_FLAGS)
export PROMPT

# Before each commit.
check: $(VENV)/.test lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not thorough and not extended and not exhaustive and not model and not oracle" $(PYTEST_FLAGS)

test: $(VENV)/.test
	$(BIN)/python -m jax_tkg.fetch_model
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not extended and not exhaustive and not oracle" $(PYTEST_FLAGS)

# More of the tests that make test has some of.
test-extended: $(VENV)/.test
	$(BIN)/python -m jax_tkg.fetch_model
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "extended and not exhaustive and not oracle" $(PYTEST_FLAGS)

# More drawn cases than CI runs.
test-exhaustive: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "exhaustive and not oracle" $(PYTEST_FLAGS)

test-all: lint test test-extended test-oracle test-exhaustive test-simulator-without-jax versions test-nkilib docs

# BUILD.md says how to get a build of PyTorch without CUDA.
test-oracle: $(VENV)/.oracle
	$(BIN)/python -m jax_tkg.fetch_model
	$(BIN)/python -m pytest -n 2 --dist worksteal -m oracle $(PYTEST_FLAGS)

# AWS's published kernels on the simulator; NKILIB names a checkout of aws-neuron/nki-library,
# branch 2.29_release, without which the tests are skipped.
test-nkilib: $(VENV)/.test
	$(BIN)/python -m pytest tests/nkilib $(PYTEST_FLAGS)

# The simulator's tests in an environment of their own that has no JAX.
test-simulator-without-jax: $(VENV)/.test
	$(BIN)/nox -s simulator-without-jax

# Breaks the simulator and then the rest of the package, one fault at a time; tests must fail.
mutation-check: $(VENV)/.test
	$(BIN)/python scripts/mutation_check.py --jobs 2
	$(BIN)/python scripts/mutation_check.py --package --jobs 2

# A thousand damaged and hostile model files: each must load or be refused in one line.
FUZZ_FLAGS ?=
fuzz: $(VENV)/.test
	$(BIN)/python -m scripts.fuzz_models $(FUZZ_FLAGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The suite on the oldest and the newest JAX that the interpreters at hand allow.
versions: $(VENV)/.test
	$(BIN)/nox

# Every reference must resolve, links to headings included. Links to other sites are not followed.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -b html -n -W --keep-going docs build/docs

dist: $(VENV)/.test
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/nox -s source-distribution

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.models: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[models]"
	touch $@

$(VENV)/.test: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[models,profile,test,dev]"
	touch $(VENV)/.models $@

$(VENV)/.oracle: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --editable ".[oracle,notebook]"
	touch $@

$(VENV)/.docs: $(VENV)/.models
	$(BIN)/python -m pip install --quiet --editable ".[models,docs]"
	touch $@

clean:
	rm -rf $(VENV) .nox build dist .pytest_cache .mypy_cache .ruff_cache
