# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SEEDS ?= 100
FROM ?= 1
MINUTES ?= 1
IMAGE ?= fluxd:latest
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose) \
  --project-name fluxd --file deploy/docker-compose.yml

export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format type proto proto-check sim sim-cluster mutants chaos bench bench-core clean
.PHONY: bench-idle bench-ops bench-failover bench-recovery bench-retention bench-flood
.PHONY: languages-test docker-image docker-test compose-up compose-down

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
	$(BIN)/pytest --ignore=tests/docker --ignore=tests/thin/test_languages.py

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

sim-cluster: $(STAMP) ## random simulation of whole clusters: make sim-cluster SEEDS=1000 FROM=1
	$(BIN)/python -m tests.cluster --seeds $(SEEDS) --from $(FROM)

chaos: $(STAMP) ## break real nodes on purpose and judge the history: make chaos MINUTES=5 SEED=7
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

mutants: $(STAMP) ## take each protective measure out in turn: does a test see it?
	$(BIN)/python -m tests.simulation.mutants

bench: $(STAMP) ## speed of a three-node cluster beside the machine's limits: make bench PLOT=bench.svg ARGS="--quick"
	$(if $(PLOT),$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]')
	$(BIN)/python -m tests.bench $(if $(PLOT),--plot $(PLOT)) $(ARGS)

bench-core: $(STAMP) ## speed of three replicas in one process beside the disk's limit: make bench-core ARGS="--quick"
	$(BIN)/python -m tests.bench.core $(ARGS)

bench-idle: $(STAMP) ## what partitions cost that nobody uses: make bench-idle ARGS="--partitions 1000 --kills 3"
	$(BIN)/python -m tests.bench.idle $(ARGS)

bench-ops: $(STAMP) ## the four below, one after another (25 minutes): make bench-ops ARGS="--quick"
	$(BIN)/python -m tests.bench.ops $(ARGS)

bench-failover: $(STAMP) ## for how long can nothing be written when a leader goes?
	$(BIN)/python -m tests.bench.failover $(ARGS)

bench-recovery: $(STAMP) ## a node with 2 GB: killed and started, and with a wiped disk
	$(BIN)/python -m tests.bench.recovery $(ARGS)

bench-retention: $(STAMP) ## a topic with retention.bytes, written at full speed
	$(BIN)/python -m tests.bench.retention $(ARGS)

bench-flood: $(STAMP) ## 200 clients that produce 1 MiB at a time, as fast as they can
	$(BIN)/python -m tests.bench.flood $(ARGS)

docker-image: ## the container image: make docker-image IMAGE=fluxd:latest
	deploy/build-image $(IMAGE)

languages-test: $(STAMP) ## programs in Go, Java, Node.js, Python and Rust against a cluster; fetches their packages
	$(BIN)/pytest tests/thin/test_languages.py

docker-test: $(STAMP) ## tests on a Docker engine; without one: deploy/with-engine make docker-test
	$(BIN)/pytest tests/docker

compose-up: docker-image deploy/.env ## three containers, published on 127.0.0.1:9101 to 9103
	FLUXD_IMAGE=$(IMAGE) $(COMPOSE) up -d --no-build
	FLUXD_IMAGE=$(IMAGE) $(COMPOSE) exec -T node1 fluxctl cluster wait --nodes 3

deploy/.env:
	@(umask 077; $(PYTHON) -c 'import secrets; print(f"FLUXD_CLUSTER_SECRET={secrets.token_hex(32)}")' >$@)

compose-down: deploy/.env ## stop and remove the containers; their volumes stay (make compose-down VOLUMES=--volumes removes them)
	$(COMPOSE) down $(VOLUMES)

clean: ## remove what make made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
