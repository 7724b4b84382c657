# Chores are verbs. `make run` and `make test` set everything up by themselves: Python 3.11 or newer, pip and make suffice.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_ARGS ?=
CONTRACTS := $(wildcard protos/inspectbus/api/*/*.proto)
GENERATED := services/inspectbus/api

FRAMES ?= 400
FPS ?=
DATA ?=
RUN_ARGS ?=
OUT ?= .inspectbus/report
SEEDS ?= 1
COMPARE_ARGS ?=
WORKERS ?= 2
SERVERS := rabbitmq-server postgresql prometheus
SERVICES ?=
IMAGE_ARGS ?=

.PHONY: help
help: ## List the chores
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: $(VENV)/.run ## Train once, then inspect a replayed test part on four stations (FRAMES=, FPS=, DATA=)
	$(BIN)/inspectbus run --frames $(FRAMES) $(if $(FPS),--fps $(FPS)) $(if $(DATA),--data "$(DATA)") $(RUN_ARGS)

.PHONY: compare
compare: $(VENV)/.run ## Every model on solar cells, or on DATA=, as a report in OUT= (SEEDS=, COMPARE_ARGS=--quick)
	$(BIN)/inspectbus compare "$(or $(DATA),elpv)" --out "$(OUT)" --seeds $(SEEDS) $(COMPARE_ARGS)

.PHONY: test
test: $(VENV)/.test servers ## Lint, types, contracts and every test (WORKERS= processes)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd protos && ../$(BIN)/buf lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

.PHONY: soak
soak: $(VENV)/.test servers ## The long tests, with their figures
	$(BIN)/python -m pytest -m soak -s tests/faults tests/line $(PYTEST_ARGS)

.PHONY: image-test
image-test: $(VENV)/.test ## Build each service's image (or SERVICES='results ...'), run it, drain it; needs root and podman
	@$(BIN)/python -m tests.images $(IMAGE_ARGS) $(SERVICES)

.PHONY: lint
lint: $(VENV)/.test ## Format, and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: protos
protos: $(VENV)/.test ## Generate services/inspectbus/api from protos/
	rm -f $(GENERATED)/*/*_pb2*.py $(GENERATED)/*/*_pb2*.pyi
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=services --mypy_out=quiet:services $(CONTRACTS)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos --grpc_python_out=services --mypy_grpc_out=quiet:services $$(grep -l '^service ' $(CONTRACTS))

.PHONY: metrics
metrics: $(VENV)/.test ## Write docs/metrics.md from what the services register
	$(BIN)/python -m tests.house.metrics_table

.PHONY: manifests
manifests: $(VENV)/.test ## Write what in k8s/ follows from a plant's lines, the code's queues and deploy/monitoring
	PYTHONPATH=services:clients:. $(BIN)/python k8s/generate.py

.PHONY: clean
clean: ## Remove the environment and everything a run left behind
	rm -rf $(VENV) .inspectbus .pytest_cache .mypy_cache .ruff_cache

# Debian keeps `ensurepip` in a package of its own; as root we fetch it, otherwise the error of venv says what to do.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "InspectBus needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing python3-venv, which this Python lacks"; apt-get update -q && apt-get install -y -q --no-install-recommends python3-venv; fi
	$(PYTHON) -m venv $(VENV)

# Tests start these themselves, as children of their own; the programs are all they need, so Debian is told (by policy-rc.d)
# to start no service. Never fails: what is missing is skipped.
.PHONY: servers
servers:
	@if [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] && { command -v postgres || ls /usr/lib/postgresql/*/bin/postgres; } >/dev/null 2>&1 \
		&& command -v promtool >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing rabbitmq-server, postgresql and prometheus, whose programs tests start for themselves"; \
		policy=/usr/sbin/policy-rc.d; \
		if [ ! -e $$policy ]; then trap "rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' > $$policy; chmod +x $$policy; fi; \
		{ apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $(SERVERS); } >/dev/null \
			|| echo "they could not be installed: tests that need them will be skipped"; \
	else echo "tests that need RabbitMQ, PostgreSQL or promtool will be skipped: apt-get install $(SERVERS)"; fi

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing InspectBus into $(VENV); the first time fetches about 1 GB and takes a few minutes"
	$(BIN)/pip install -q $(PIP_ARGS) -c constraints.txt -e '.[all,demo]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing InspectBus and its test tools into $(VENV)"
	$(BIN)/pip install -q $(PIP_ARGS) -c constraints.txt -e '.[all,demo,test]'
	touch $@ $(VENV)/.run
