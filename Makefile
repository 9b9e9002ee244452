# Each target creates .venv if there is none, installs the versions pinned in constraints.txt, and runs.
#   make demo        corpus, training of three recipes, scores, demo/report.html
#   make test        the tests
#   make test-all    those that take minutes too
#   make lint        ruff, mypy, import-linter
#   make docs        the documentation, at build/site/index.html
#   make benchmark   speed of an index on this machine: a quarter of an hour or more
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
INSTALLED := .venv/installed
DEMO_INSTALLED := .venv/installed-demo

# Where it is set, each of many processes compiles all that it imports again, which takes half of the time of the tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all benchmark docs lint format clean

demo: $(DEMO_INSTALLED)
	$(BIN)/saysee demo --to demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist worksteal

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist worksteal -m ''

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(INSTALLED)
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo build/site/index.html

benchmark: $(INSTALLED)
	$(BIN)/python -m benchmarks.search

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The stamp is written last: an interrupted installation is repeated. The demo needs a part of what the others do. Bytecode
# is written at the first import, of what is imported: compiling all takes as long as the rest of the installation.
install = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable

$(INSTALLED): $(DEMO_INSTALLED)
	$(install) '.[dev]'
	touch $(INSTALLED)

$(DEMO_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v < (3, 14) else f'SaySee needs Python 3.10 to 3.13, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.11 ...')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(install) '.[demo]'
	touch $(DEMO_INSTALLED)

clean:
	rm -rf .venv demo
