# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SEEDS ?= 100
FROM ?= 1

export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format type proto proto-check sim bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

venv: $(STAMP) ## virtual environment with pinned versions

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## three nodes, real text, kill -9 the leader, count what was lost
	$(BIN)/fluxctl demo failover

test: $(STAMP) ## unit, property, simulation and integration tests
	$(BIN)/pytest

lint: $(STAMP) ## ruff and the layering of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(STAMP) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(STAMP) ## mypy, strict
	$(BIN)/mypy

proto: $(STAMP) ## generate the stubs from proto/
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. proto/fluxlog/v1/*.proto

proto-check: proto ## the committed stubs are what proto/ says
	git diff --exit-code --stat fluxlog/v1

sim: $(STAMP) ## random simulation of whole Raft groups: make sim SEEDS=1000 FROM=1
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --from $(FROM)

bench: $(STAMP) ## speed of a three-node cluster on this machine, beside the disk's limit
	$(BIN)/python -m tests.bench

clean: ## remove what make made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
