# Everything runs from .venv, which .ci/venv makes from the lock files; nothing else needs to be set up.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# Container images set this. Here it would cost every start of a command its compilation again.
unexport PYTHONDONTWRITEBYTECODE

bin := .venv/bin
rooms := processor handlers workflows infra
compile := uv pip compile --no-config --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header pyproject.toml --group build

.PHONY: help demo modal-demo test story lint types unit simulate audit secrets lock clean base all

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: base ## render the example drops on this machine and show the gallery
	@$(bin)/dropbatch demo

modal-demo: all ## the same drops through the real Modal client and containers, on this machine
	@$(bin)/python -m tests.infra.demo .demo-modal

test: lint types unit ## everything that must pass: lint, types, tests

story: all ## pictures to LoRA to test grid with both real engines; needs COMFYUI_DIR and AI_TOOLKIT_DIR
	$(bin)/pytest -rs tests/acceptance/test_story.py

lint: all ## ruff and the direction of imports
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/lint-imports --no-logo

types: all ## mypy, strict
	$(bin)/mypy $(rooms) tests .ci/audit.py

unit: all ## the tests, on every core
	$(bin)/pytest -n auto -o faulthandler_timeout=120

bench: all ## measure every promise about speed; ROWS="startup cost" for some of them
	$(bin)/python -m tests.benchmarks $(ROWS)

soak: all ## kill -9 at random against failing stores; ROUNDS=200, SEED= to repeat one
	$(bin)/python -m tests.soak --rounds $(or $(ROUNDS),200) $(if $(SEED),--seed $(SEED))

simulate: all ## a simulated fleet under faults: N=20000 schedules from SEED=0
	@N=$(or $(N),20000) SEED=$(or $(SEED),0) $(bin)/python -m tests.simulation

scale: all ## simulate nights on Modal; ARGS=--million for the largest
	$(bin)/python -m tests.scale $(ARGS)

audit: all ## known vulnerabilities in what the lock installs
	$(bin)/python .ci/audit.py .ci/lock/all.txt

secrets: all ## credentials in tracked files
	.ci/secrets

lock: all ## choose and pin the newest versions that pyproject.toml allows
	$(bin)/$(compile) --upgrade --output-file .ci/lock/base.txt
	$(bin)/$(compile) --upgrade --constraint .ci/lock/base.txt --group dev --all-extras --output-file .ci/lock/all.txt

clean: ## remove what these targets made
	rm -rf .venv .demo .demo-modal .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find $(rooms) tests -name __pycache__ -type d -prune -exec rm -rf {} +

base all:
	@.ci/venv $@
