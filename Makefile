# The two commands of the project: `make demo` and `make test`. Both set up .venv first; neither needs root.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
EXTRAS ?= all,dev

.PHONY: setup demo test check check-slow lint types docs figures bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kitae needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	@touch $@

demo: setup
	$(BIN)/kitae train fashion-mini --out runs/demo --overwrite
	$(BIN)/kitae compress runs/demo --max-drop 1.0 --out runs/demo-small --overwrite
	$(BIN)/kitae train photos-mini --minutes 1 --out runs/demo-photos --overwrite
	$(BIN)/python scripts/some_photos.py runs/photos
	$(BIN)/kitae predict runs/demo-photos runs/photos
	@echo "Open runs/demo/report.html, runs/demo-small/report.html and runs/demo-photos/report.html"

# One file per process at a time, one thread each: threads of several processes on the same cores wait for each other.
test: setup
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

check: lint types test

check-slow: setup
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[cluster]'
	$(BIN)/python -m pytest -q -m slow

# Into build/site; a warning is an error.
docs: setup
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What the docs show and a command makes from the code and the committed results.
figures: setup
	$(BIN)/python scripts/draw_design.py
	$(BIN)/python scripts/doc_pictures.py
	$(BIN)/python scripts/recipe_reference.py
	$(BIN)/python scripts/op_reference.py
	$(BIN)/python benchmarks/augment.py --docs-only
	$(BIN)/python benchmarks/compression.py
	$(BIN)/python scripts/benchmark_pages.py
	$(BIN)/python scripts/measured.py
	$(BIN)/python scripts/rivals.py
	$(BIN)/python scripts/ledger.py studies/results --out docs/ledger.md

# Replaces the committed results of these benchmarks; `make figures` then makes their pages again.
bench: setup
	$(BIN)/python benchmarks/augment.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/infer.py
	$(BIN)/python benchmarks/cold_start.py
	$(BIN)/python benchmarks/first_line.py
	$(BIN)/python benchmarks/store.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
