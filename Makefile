# Every target does its own set-up: a virtual environment in .venv/, made once and kept.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: run test lint check system faults bench clean

run: .venv/.runtime  ## train, register and show a news classifier
	$(BIN)/gpt2cls run recipes/bbc-news-small.yaml

test: .venv/.dev  ## unit and system tests
	$(BIN)/python -m pytest -m "not faults and not gpu"

lint: .venv/.dev  ## format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint  ## the same and the unit tests
	$(BIN)/python -m pytest -q -m "not system and not faults and not gpu"

system: .venv/.dev  ## whole commands with a local Ray and MLflow server
	$(BIN)/python -m pytest -m system

faults: .venv/.dev  ## processes killed and services cut on purpose
	$(BIN)/python -m pytest -m faults

bench: .venv/.bench  ## speed against the Hugging Face Trainer; $$GPT2CLS_DATA names the sets; an hour
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/time_to_accuracy.py
	$(BIN)/python benchmarks/frozen.py
	$(BIN)/python benchmarks/heads.py
	$(BIN)/python benchmarks/predict.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/startup.py

.venv/.runtime: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "gpt2cls needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv/ (about 2.4 GB, a few minutes, only this once)"
	$(PIP) -e .
	@touch $@

.venv/.dev: .venv/.runtime
	$(PIP) -e '.[dev]'
	@touch $@

.venv/.bench: .venv/.runtime
	$(PIP) -e '.[bench]'
	@touch $@

clean:  ## remove the environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build *.egg-info
