# make demo: decode the held-out prompts and compare with theory.   make test: every check.
# make quick: without the slow tests, the kernels, several devices and fuzzing (some minutes on 2 cores).
# make docs: build the documentation into site/ (no network; any warning is an error).
# Needs Python 3.11+ and make; everything is installed into .venv with the versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test quick lint docs fuzz package package-all coverage mutate
setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("specbound needs Python 3.11 or newer; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/specbound demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p .venv/types/specbound
	ln -sfn $(addprefix $(CURDIR)/,theory runtime proofs_checks specbound/commands specbound/adapters specbound/py.typed $(wildcard specbound/*.py)) .venv/types/specbound/
	ln -sfn $(CURDIR)/examples/pair .venv/types/specbound/shipped_pair
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

quick: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal -m "not slow and not kernels and not devices and not fuzz"

# At least FUZZ_CASES random cases of every public entry; FUZZ_SHRINK=0 reports failures without shrinking them.
FUZZ_CASES ?= 2000
fuzz: setup
	OMP_NUM_THREADS=1 FUZZ_CASES=$(FUZZ_CASES) $(BIN)/pytest -n auto --dist worksteal --hypothesis-show-statistics $(wildcard tests/*/test_fuzz_*.py)

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Wheel and sdist, used outside the repository; package-all also in empty environments and on other Pythons.
# It downloads some 6 GB and takes the better part of an hour. Pythons by name or by path.
OTHER_PYTHONS ?= python3.12 python3.13
RUNTIME_PYTHON ?= python3.12
package: setup
	$(BIN)/python scripts/package.py

package-all: package
	$(BIN)/python scripts/package.py --installs --theory $(OTHER_PYTHONS) --runtime $(RUNTIME_PYTHON)

coverage: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal --cov --cov-report=term

mutate: setup
	$(BIN)/python scripts/mutate.py
