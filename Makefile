.DEFAULT_GOAL := help
.PHONY: help setup serve test long fuzz e2e chaos check format openapi lock clean
PY := .venv/bin/python

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## .venv from the pinned list for this machine; ACCEL=cpu|gpu chooses
	@scripts/setup.sh

serve: setup ## the server, at port 8001
	@$(PY) -m serve_app.serve

test: setup ## every test: plain Python first, then a real vLLM, then a real Ray Serve
	@$(PY) -m pytest -n auto -m "not vllm and not ray and not long and not chaos and not fuzz" && $(PY) -m pytest -m fuzz && $(PY) -m pytest -m "vllm and not ray" && $(PY) -m pytest -m ray

long: setup ## tests that take minutes: the job store killed between any two statements, thousands of times
	@$(PY) -m pytest -m long

fuzz: setup ## a real server fed with made-up requests, for ten minutes; FOR=600
	@$(PY) -m tests.fuzz.long $(or $(FOR),600)

e2e: setup ## only the tests that start Ray Serve
	@$(PY) -m pytest -m ray

chaos: setup ## kill -9 of every part of a server in use, one after the other; prints what came of it
	@$(PY) -m pytest -m chaos

check: setup ## format, lint, types, import rules
	@$(PY) -m ruff format --check . && $(PY) -m ruff check . && $(PY) -m mypy && .venv/bin/lint-imports

format: setup ## rewrites the code in its one format
	@$(PY) -m ruff format . && $(PY) -m ruff check --fix .

openapi: setup ## docs/openapi.json, from the code
	@$(PY) -m tests.contract.write_openapi

lock: setup ## pyproject.toml resolved into requirements/*.txt; ARGS=--upgrade for newer versions
	@scripts/lock.sh $(ARGS)

clean: ## removes .venv and caches; keeps checkpoints and data
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
