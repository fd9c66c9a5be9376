# What people run all day. `make setup` runs automatically when something is missing.

PYTHON ?= python3
BIN := .venv/bin
# Written last by the set-up, so a set-up that broke off runs again.
READY := .venv/.ready

.PHONY: setup demo test check format

demo: $(READY)
	$(BIN)/lpa demo $(ARGS)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(READY)

$(READY): pyproject.toml constraints.txt scripts/setup
	PYTHON=$(PYTHON) scripts/setup
	touch $@
