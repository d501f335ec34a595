# Development commands; they create .venv when needed. ASCEND_CPT_PYTHON selects another environment.
SHELL := bash
ENV := source scripts/python_env.sh && ensure_env dev

.PHONY: check test format

check:
	@$(ENV) && set -x && $$PYTHON -m ruff check . && $$PYTHON -m ruff format --check . && $$PYTHON -m mypy

test:
	@bash scripts/run_tests.sh

format:
	@$(ENV) && set -x && $$PYTHON -m ruff check --fix . && $$PYTHON -m ruff format .
