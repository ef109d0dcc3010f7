# Every command works from a fresh clone: what it needs, it installs into .venv first.
PYTHON ?= python3
BIN    := .venv/bin
# The versions that are tried before each commit; `make test CONSTRAINTS=` takes the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
# More options for pip, such as a proxy: make run PIP_OPTIONS='--proxy http://proxy.example.org:3128'
PIP_OPTIONS ?=

.DEFAULT_GOAL := help
.PHONY: help install run test stress conformance lint format lock schema dag clean

help:  ## Show this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1|/' | column -t -s '|'

install: .venv/installed  ## Install everything into .venv, which each command below does if need be

run: .venv/installed  ## Run the lab that needs no download, lenet_digits, and show its result
	@$(BIN)/labdag run lenet_digits

test: .venv/installed  ## Run the whole test suite
	@$(BIN)/pytest

stress: .venv/installed  ## Hold runs against plain DVC, kill them, edit meanwhile: often (an hour or two)
	@LABDAG_STRESS=1 $(BIN)/pytest -n 0 tests/test_stress.py tests/test_oracle.py \
	    tests/test_resume.py tests/test_services.py tests/test_sweep.py

conformance: .venv/installed  ## Run DVC's own tests of `dvc repro` with labdag in its place
	@$(BIN)/python -m conformance

lint: .venv/installed  ## Check format, style, types, and which folder imports which
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: .venv/installed  ## Format the code and mend what ruff can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: .venv/installed  ## Resolve pyproject.toml anew and pin every package of the tree in constraints.txt
	@$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --strip-extras \
	    --no-annotate --no-config --upgrade --quiet \
	    --custom-compile-command 'make lock' --output-file constraints.txt

schema: .venv/installed  ## Write params.schema.json anew, after a change of the options that the code declares
	@$(BIN)/python -m stages.params schema > params.schema.json.part && mv params.schema.json.part params.schema.json

dag: .venv/installed  ## Write the comparisons of params.yaml into dvc.yaml, after a change of their labs
	@$(BIN)/python -m stages.params dag

clean:  ## Remove .venv and the caches of tools; data, results and DVC's cache stay
	rm -rf .venv build ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dvc_plots
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp file is newer than what it was installed from, so a second `make run` installs nothing.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || { \
	    echo "labdag needs Python 3.11.4 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another one: make $(or $(MAKECMDGOALS),run) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing into .venv (once; about 6 GB, a few minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -e '.[dev]' \
	    $(addprefix -c ,$(CONSTRAINTS))
	@touch $@
