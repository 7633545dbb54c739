# Every target sets up what it needs in .venv; nothing but Python 3.11 and make is asked of the machine.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0

COMPOSE ?= docker compose
COMPOSE_BUILD ?= $(COMPOSE) build

.PHONY: help setup test test-gpu compose-test chaos chaos-retries lint demo bench bench-quick wrk postgresql redis serve clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# The CPU build where pip knows of one: the other brings gigabytes of CUDA packages (README, "Installing torch").
$(VENV)/.torch:
	@echo "Setting up $(VENV); this happens once, and takes some minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q "torch==$(TORCH)+cpu" || { \
	  echo "pip knows no index of torch's CPU builds: taking the default build, on Linux several gigabytes (see README)"; \
	  $(BIN)/pip install "torch==$(TORCH)"; }
	@touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.torch
	@$(BIN)/pip install -q -e ".[server,torch,demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@$(BIN)/pip install -q -e ".[server,torch,demo,dev]"
	@touch $@

$(VENV)/.bench: $(VENV)/.demo
	@$(BIN)/pip install -q -e ".[server,torch,demo,bench]"
	@touch $@

setup: $(VENV)/.dev ## the environment for working on optimd

demo: $(VENV)/.demo ## train digits over HTTP, compare optimizers; needs nothing running, leaves nothing running
	$(BIN)/python examples/digits.py

serve: $(VENV)/.demo ## a server on 127.0.0.1:8000
	$(BIN)/optimd-server run

# Tests of the API whose answers, or whose servers, depend on where histories are kept.
ABOUT_HISTORY := $(addprefix tests/service/api/test_api_,server_processes.py reading.py creation.py policies.py)

test: setup postgresql redis ## all tests; those of client and API over Unix sockets too, and those of RemoteOptimizer with overlap
	$(BIN)/pytest -n 2
	$(BIN)/pytest -n 2 --transport unix tests/client tests/service/api
	$(BIN)/pytest -n 2 --overlap tests/client/test_remote_optimizer*.py
	$(BIN)/pytest -n 2 --device posing tests/service/api
	$(BIN)/pytest -n 2 --database postgresql tests/service/history $(ABOUT_HISTORY)

# Without a local label: on Linux that is the CUDA build, of which setup took the smaller sister.
test-gpu: setup ## tests of sessions on a GPU, where there is one; puts torch's CUDA build into .venv
	$(BIN)/pip install -q "torch===$(TORCH)"
	@$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('torch sees no GPU')"
	$(BIN)/pytest -n 2 -k cuda tests/service/optim tests/service/session tests/service/wire
	$(BIN)/pytest -n 2 --device cuda tests/service/api

compose-test: setup ## the containers: built, and every one restarted while a training goes on; needs Docker
	$(COMPOSE_BUILD)
	$(BIN)/pytest tests/compose --compose "$(COMPOSE)"

# What was drawn by chance is repeated with CHAOS_SEED=, as far as threads and disks allow.
CHAOS_KILLS ?= 200
CHAOS_RETRIES ?= 100000
chaos: setup ## a training whose server is killed CHAOS_KILLS times, held against an oracle; ten minutes
	CHAOS_KILLS=$(CHAOS_KILLS) $(BIN)/pytest -s tests/chaos/test_chaos.py

chaos-retries: setup ## pushes over a proxy that breaks connections, until CHAOS_RETRIES were sent again; five minutes
	CHAOS_RETRIES=$(CHAOS_RETRIES) $(BIN)/pytest -s tests/chaos/test_retries.py

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench wrk redis ## every table of docs/performance.md; half an hour, and 16 GB of memory
	$(BIN)/python benchmarks/large_step.py
	$(BIN)/python benchmarks/large_step.py --transport uds
	$(BIN)/python benchmarks/large_step.py --dtype bf16
	$(BIN)/python benchmarks/large_step.py --dtype bf16 --transport uds
	$(BIN)/python benchmarks/large_step.py --tensors 1000
	$(BIN)/python benchmarks/large_step.py --clients 16 --parameters 1000000
	$(BIN)/python benchmarks/small_step.py
	$(BIN)/python benchmarks/small_step.py --transport uds
	$(BIN)/python benchmarks/many_clients.py
	$(BIN)/python benchmarks/side_by_side.py
	$(BIN)/python benchmarks/overlap.py
	$(BIN)/python benchmarks/linear.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/journal.py
	$(BIN)/python benchmarks/durability.py
	$(BIN)/python benchmarks/durability.py --parameters 10000 --rounds 500
	$(BIN)/python benchmarks/many_clients.py --durability step
	$(BIN)/python benchmarks/updates.py
	$(BIN)/python benchmarks/redis_step.py

bench-quick: $(VENV)/.demo ## a small and a larger step beside floor and peers, some updates beside torch's; two minutes
	$(BIN)/python benchmarks/small_step.py --steps 3000 --rounds 5 --peers bare_asgi ray_actor
	$(BIN)/python benchmarks/large_step.py --parameters 10000000 --peers gloo ray_actor
	$(BIN)/python benchmarks/updates.py --optimizers sgd adam adamw lion

wrk:
	@command -v wrk >/dev/null || apt-get install -y -q wrk || { echo "bench needs wrk: install it"; exit 1; }

# The programs alone: tests start a server of their own, and none is to be left running beside it.
NO_CLUSTER := /etc/postgresql-common/createcluster.d/optimd.conf
postgresql:
	@command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { \
	  mkdir -p $(dir $(NO_CLUSTER)) && echo "create_main_cluster = false" > $(NO_CLUSTER) && \
	  { apt-get update -q && apt-get install -y -q postgresql; ended=$$?; rm -f $(NO_CLUSTER); test $$ended = 0; }; } || \
	  { echo "tests need PostgreSQL: install it"; exit 1; }

redis:
	@command -v redis-server >/dev/null || { apt-get update -q && apt-get install -y -q redis-server; } || \
	  { echo "tests need Redis: install redis-server"; exit 1; }

clean: ## remove what the targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache examples/out benchmarks/out
