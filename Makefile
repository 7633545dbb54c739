# Every target sets up what it needs in .venv; nothing but Python 3.11 and make is asked of the machine.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0

.PHONY: help setup test lint demo bench-quick serve clean

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

setup: $(VENV)/.dev ## the environment for working on optimd

demo: $(VENV)/.demo ## train digits over HTTP, compare optimizers; needs nothing running, leaves nothing running
	$(BIN)/python examples/digits.py

serve: $(VENV)/.demo ## a server on 127.0.0.1:8000
	$(BIN)/optimd-server run

test: setup ## all tests
	$(BIN)/pytest -n 2

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-quick: $(VENV)/.demo ## a small step beside its floor, and updates beside torch's; under two minutes
	$(BIN)/python benchmarks/small_step.py
	$(BIN)/python benchmarks/updates.py

clean: ## remove what the targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache examples/out benchmarks/out
