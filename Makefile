# Plain pip in a virtual environment of this folder's own. Set PYTHON=python3.12 for another interpreter (3.11 or newer), and
# PIP_FLAGS for options of pip, for instance a CPU-only torch:
#   make quickstart PIP_FLAGS='--extra-index-url https://download.pytorch.org/whl/cpu'
PYTHON ?= python3
PIP_FLAGS ?=
ARGS ?=

# Tools are called as modules: a script names its folder in its first line, where spaces and long paths are trouble
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
LOWEST_TESTS := $(addprefix tests/,losses pixels towers students teachers tokens batches train store/test_build.py store/test_embed.py)

.DEFAULT_GOAL := help
.PHONY: help quickstart test check lint types tests test-lowest build format clean install

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/installed ## Install, then distil two students from a teacher, offline, in minutes (ARGS='--data D --teacher T')
	$(BIN)/python -m clip_distill quickstart $(ARGS)

test: check tests ## Install with the developers' extras, then ruff, mypy and pytest

install: $(VENV)/installed-dev ## Install with the developers' extras

check: lint types ## Style and types alone, in seconds

lint: $(VENV)/installed-dev ## Check style
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(VENV)/installed-dev ## Check types
	$(BIN)/python -m mypy

tests: $(VENV)/installed-dev ## Run the tests, two at a time (ARGS='-k name', ARGS='-n 0' one at a time)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations=10 $(ARGS)

test-lowest: $(LOWEST)/installed ## Run what most depends on other packages, with the lowest releases that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(LOWEST_TESTS) $(ARGS)

build: $(VENV)/installed-dev ## Make dist/*.whl and dist/*.tar.gz
	$(BIN)/python -m build

format: $(VENV)/installed-dev ## Put the code into style
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean: ## Remove the environments and caches; runs, stores and quickstarts stay
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Stamps are made last, so an installation that was stopped starts again, and are older than a changed pyproject.toml
$(VENV)/installed: pyproject.toml | $(VENV)/created
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[train,search,charts]'
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/created
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[dev]'
	touch $(VENV)/installed $@

$(VENV)/created:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0] + "; try make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	touch $@

$(LOWEST)/installed: pyproject.toml .ci/lowest.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python .ci/lowest.py > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install $(PIP_FLAGS) -c $(LOWEST)/lowest.txt \
	  -e '.[train,search,transformers,webdataset,onnx]' pytest pytest-timeout pytest-xdist hypothesis
	touch $@
