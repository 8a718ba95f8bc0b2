# Every task of the project. `make help` lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := .venv.stamp

.PHONY: help setup ingest test test-system system-deps check format lint types contracts

help: ## List the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create the virtual environment and write DAGSTER_HOME into .env

$(STAMP): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/market-pipeline init
	@touch $@

ingest: setup ## Run the main job and show what it wrote
	$(BIN)/dagster job execute -m market_pipeline.definitions -j ingest
	$(BIN)/market-pipeline runs

test: setup ## Run the tests that need Python wheels only
	$(BIN)/python -m pytest -m "not system"

check: lint types contracts ## Format, lint, types and architecture contracts

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports
