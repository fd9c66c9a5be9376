# What people run all day. `make setup` runs automatically when something is missing.

PYTHON ?= python3
BIN := .venv/bin
# Written last by the set-up, so a set-up that broke off runs again.
READY := .venv/.ready
DOCS_READY := .venv/.docs-ready

# Containers often forbid Python to keep what it compiles: each process of a test would compile torch again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test check format docs dist

demo: $(READY)
	$(BIN)/lpa demo $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The site, in site/. Any warning, such as a link that leads nowhere, fails.
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build $(ARGS)

# Wheel and source archive, in dist/, tried in an empty environment.
dist:
	PYTHON=$(PYTHON) scripts/dist $(ARGS)

setup: $(READY)

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

$(READY): pyproject.toml constraints.txt scripts/setup scripts/install_torch
	PYTHON=$(PYTHON) scripts/setup
	touch $@
