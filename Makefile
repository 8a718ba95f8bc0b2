# Every task of the project. `make help` lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
PORT ?= 3000
VENV := .venv
BIN := $(VENV)/bin
# In the environment, so that removing .venv by hand sets it up anew. Each builds on the first.
STAMP := $(VENV)/.stamp
DEV_STAMP := $(VENV)/.stamp-dev
SYSTEM_STAMP := $(VENV)/.stamp-system
BENCH_STAMP := $(VENV)/.stamp-bench
USE_TABLES := $(addprefix market_pipeline_tests/,storage ingestion readers test_earlier_schemas.py test_old_database.py)
CHROMIUM := /usr/bin/chromium
FAKETIME := /usr/lib/*/faketime/libfaketimeMT.so.1
NGINX := /usr/sbin/nginx
PGBOUNCER := /usr/sbin/pgbouncer
PROMTOOL := /usr/bin/promtool
POSTGRESQL := /usr/lib/postgresql
# Tests and commands are many processes: what is compiled once lets each start sooner.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup ingest dev web scheduler serve test test-storage test-watch test-writer test-faults \
	test-system system-check system-deps kills load mutants bench check format lint types contracts

help: ## List the tasks
	@echo 'make TASK, where TASK is one of'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'Each sets up what it needs. Options: PYTHON=python3.12, PORT=3001 (of make dev and web)'

setup: $(STAMP) ## Install what the product needs, and write DAGSTER_HOME into .env

$(STAMP): setup.py hashes.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.11 or newer, or name yours: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "%s is Python %d.%d, and 3.11 or newer is needed: install it, or name yours: make PYTHON=python3.12" % (("$(PYTHON)",) + sys.version_info[:2]))'
	@$(PYTHON) install.py
	@$(BIN)/python -m compileall -q market_pipeline
	@$(BIN)/market-pipeline init
	@touch $@

$(DEV_STAMP): $(STAMP)
	@$(BIN)/python install.py dev
	@touch $@

ingest: setup ## Run the main job and show what it wrote
	$(BIN)/market-pipeline ingest

dev: setup ## Open Dagster's UI and daemon on http://127.0.0.1:3000, the dashboard on :8000
	@$(BIN)/market-pipeline dev --port $(PORT)

web: setup ## Run Dagster's webserver alone, on loopback
	@echo "Dagster's UI: http://127.0.0.1:$(PORT) (Ctrl-C ends it); make scheduler runs the daemon"
	$(BIN)/market-pipeline web -h 127.0.0.1 -p $(PORT) -w workspace.yaml

# Not set within the recipe: the shell that this takes would end on SIGTERM without its daemon.
scheduler: export INGESTION_SCHEDULE_ENABLED := true
scheduler: setup ## Run the daemon with the schedule on
	$(BIN)/dagster-daemon run

serve: setup ## Serve the HTTP API and the dashboard on http://127.0.0.1:8000 (API_PORT)
	$(BIN)/market-pipeline serve

test: $(DEV_STAMP) ## Run the tests that need Python wheels only
	$(BIN)/python -m pytest -m "not system and not faults" -n 4 --dist loadfile --durations 10

test-writer: $(DEV_STAMP) ## Run them with no more rights than a writer has (market-pipeline db roles)
	$(BIN)/python -m pytest -m "not system and not faults" -n 2 --dist loadfile --as-writer

test-faults: $(DEV_STAMP) ## Run what takes long, above all faults (SEEDS=20: so many of each that is drawn)
	$(BIN)/python -m pytest -m faults -n 4 --dist loadfile --no-loadscope-reorder --durations 10

test-storage: $(DEV_STAMP) ## Run what uses tables most (PG_BIN=/usr/lib/postgresql/15/bin: on another PostgreSQL)
	$(BIN)/python -m pytest -m "not system" -n 2 --dist loadfile $(USE_TABLES)

test-watch: $(DEV_STAMP) ## Run the tests again whenever a file changes
	$(BIN)/ptw . -m "not system and not faults"

test-system: system-check $(SYSTEM_STAMP) ## Run the tests that need Debian packages as well
	$(BIN)/python -m pytest -m system -n 2 --dist loadfile --no-loadscope-reorder

$(SYSTEM_STAMP): $(DEV_STAMP)
	@$(BIN)/python install.py dev system
	@touch $@

system-check: ## Name the Debian packages that make test-system misses
	@missing=; \
	test -x $(CHROMIUM) || missing="$$missing chromium"; \
	ls $(FAKETIME) >/dev/null 2>&1 || missing="$$missing libfaketime"; \
	test -x $(NGINX) || missing="$$missing nginx-light"; \
	test -x $(PGBOUNCER) || missing="$$missing pgbouncer"; \
	test -x $(PROMTOOL) || missing="$$missing prometheus"; \
	ls $(POSTGRESQL)/*/bin/postgres 2>/dev/null | grep -Eq '/(1[5-9]|[2-9][0-9])/' \
		|| missing="$$missing postgresql-15 (or newer)"; \
	test -z "$$missing" || { echo "Missing:$$missing. As root: make system-deps" >&2; exit 1; }

system-deps: ## Install the Debian packages of make test-system (as root)
	@command -v apt-get >/dev/null || { echo "No apt-get here: install chromium, libfaketime, nginx, pgbouncer, promtool and the server of PostgreSQL 15 or newer yourself" >&2; exit 1; }
	@test "$$(id -u)" = 0 || { echo "Installing packages takes root: sudo make system-deps" >&2; exit 1; }
	apt-get update -qq
	@# The oldest server that is supported, where Debian still has it; else Debian's own choice.
	server=$$(apt-cache policy postgresql-15 | grep -q 'Candidate: [0-9]' && echo postgresql-15 || echo postgresql); \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium libfaketime nginx-light pgbouncer prometheus $$server
	@$(MAKE) --no-print-directory system-check

kills: $(DEV_STAMP) ## Kill runs anywhere in their work, and count what is lost (KILLS=500, SEEDS=7 for a part)
	$(BIN)/python -m market_pipeline_tests.faults.kills $(or $(KILLS),100) $(SEEDS)

load: $(DEV_STAMP) ## Ten minutes of load with faults in the middle (LOAD_SECONDS=60 for a try)
	$(BIN)/python -m market_pipeline_tests.faults.load

mutants: $(DEV_STAMP) ## Break each promise on purpose, and see that the tests notice (WORDS=I4 for a part)
	$(BIN)/python -m market_pipeline_tests.mutants $(WORDS)

bench: $(BENCH_STAMP) ## Measure beside other tools what it costs (a part: ONLY=name,...)
	$(BIN)/python -m benchmarks $(ONLY)

$(BENCH_STAMP): $(DEV_STAMP)
	@$(BIN)/python install.py dev bench
	@touch $@

check: lint types contracts ## Check format, lint, types and architecture contracts

format: $(DEV_STAMP) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(DEV_STAMP) ## Check format and lint alone
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(DEV_STAMP) ## Check types alone
	$(BIN)/mypy

contracts: $(DEV_STAMP) ## Check the architecture contracts alone
	$(BIN)/lint-imports
