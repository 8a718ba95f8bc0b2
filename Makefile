# Every task of the project. `make help` lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := .venv.stamp

.PHONY: help setup ingest test test-system test-watch system-deps dev scheduler check format lint types contracts

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

test-system: setup ## Run the tests that need Debian packages as well
	@command -v chromium >/dev/null || { echo "chromium is missing: run make system-deps"; exit 1; }
	@test -x /usr/lib/postgresql/15/bin/postgres || { echo "postgresql-15 is missing: run make system-deps"; exit 1; }
	$(BIN)/python -m pytest -m system

system-deps: ## Install the Debian packages of make test-system (as root)
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium postgresql-15

test-watch: setup ## Run the tests again whenever a file changes
	$(BIN)/ptw . -m "not system"

dev: setup ## Open Dagster's webserver and daemon on http://127.0.0.1:3000
	$(BIN)/dagster dev -h 127.0.0.1 -p 3000

scheduler: setup ## Run the daemon with the schedule on
	INGESTION_SCHEDULE_ENABLED=true $(BIN)/dagster-daemon run

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
