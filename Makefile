# Two commands matter: `make demo` and `make test`. Both need Python >= 3.11, make and git, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test coverage format bench clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

# The marker is written last, so an interrupted installation starts again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo 'error: $(PYTHON) is not Python 3.11 or newer; name one that is: make PYTHON=python3.12' >&2; exit 1; }
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV): $(INSTALLED)

# What `make demo` prepares and trains, from random weights.
DEMO_DATA := --patients 20 --shape 64 64 40 --seed 0
DEMO_PARTITION := --clients 4 --alpha 1.0 --test-fraction 0.2 --geometry any
DEMO_TRAIN := --rounds 5 --local-epochs 1 --crop 64 --weights none --learning-rate 1e-3 --slices tumour

demo: $(INSTALLED)  ## Synthetic archives to a trained, scored and reported model, in minutes
	rm -rf demo
	$(BIN)/prep phantom demo/data $(DEMO_DATA)
	$(BIN)/prep partition demo/data --cache demo/cache $(DEMO_PARTITION)
	$(BIN)/train fed --cache demo/cache --run demo/run $(DEMO_TRAIN)
	$(BIN)/train eval demo/run --cache demo/cache --untrained
	$(BIN)/train eval demo/run --cache demo/cache
	$(BIN)/train report demo/run --cache demo/cache --out demo/report.html
	@echo 'The report is in demo/report.html.'

# Test processes with one thread each: more threads fight over two cores and take longer. There is one process
# more than cores, because tests of several programs often wait for one of them.
test coverage: export OMP_NUM_THREADS := 1
PYTEST := $(BIN)/pytest -n 3 --dist worksteal

test: $(INSTALLED)  ## Format, lint, types, import rules and tests; CI runs this and the demo
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

coverage: $(INSTALLED)  ## The tests again, and which lines they reach: half as long again
	$(PYTEST) --cov --cov-report=term

format: $(INSTALLED)  ## Put every file into the project's format and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)  ## Measure speed against floors and peers
	@if [ -f bench/__main__.py ]; then $(BIN)/python -m bench; else echo 'there is no benchmark in bench/ yet'; fi

clean:  ## Remove what make made; data, caches and runs of yours stay
	rm -rf $(VENV) demo build dist *.egg-info .coverage .coverage.*
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
