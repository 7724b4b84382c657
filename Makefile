# Chores are verbs. `make run` and `make test` set everything up by themselves.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GENERATED := services/inspectbus/api/v1

.PHONY: protos
protos: ## Generate services/inspectbus/api/v1 from protos/
	rm -f $(GENERATED)/*_pb2*.py $(GENERATED)/*_pb2*.pyi
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=services --mypy_out=quiet:services protos/inspectbus/api/v1/*.proto
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m grpc_tools.protoc -Iprotos --grpc_python_out=services --mypy_grpc_out=quiet:services $$(grep -l '^service ' protos/inspectbus/api/v1/*.proto)
