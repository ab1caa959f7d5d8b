# `make demo` and `make test` start from a bare clone: they make .venv, install into it, and run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Build environments are pinned too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: demo test lint bench evidence results study tables support slow clean

demo: $(VENV)/.runs
	$(BIN)/iec demo

test: $(VENV)/.develops
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/.develops
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.runs
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/efficiency.py
	$(BIN)/python benchmarks/evaluation.py

evidence: $(VENV)/.runs
	$(BIN)/iec reproduce efficient --size quick -o docs --results runs/evidence

COMPARE := $(BIN)/iec compare --steps 20 --dtype bfloat16 --results runs/compare

results: $(VENV)/.runs
	$(COMPARE) --cache deepcache:5 -n 256 -o docs/results/deepcache-5
	$(COMPARE) --cache deepcache:10 -n 128 --correct paper -o docs/results/deepcache-10
	$(COMPARE) --quantize w8a8 -n 128 --samples 16 --correct paper -o docs/results/w8a8
	$(COMPARE) --cachequant 5,w8a8 -n 128 --samples 16 --correct paper -o docs/results/cachequant-5

# About five hours on two cores; what is in runs/evidence is not sampled again.
TABLES := table1 table2 table3 table4 table5 iterations relaxation pareto severity
FIGURES := $(foreach number,2 3 4 5 6 7 8 9 10 11,figure$(number))

study: $(VENV)/.runs
	$(BIN)/iec reproduce correction -o docs/results --results runs/evidence

tables: $(VENV)/.runs
	for name in $(TABLES) $(FIGURES); do $(BIN)/iec reproduce $$name -o docs/results --results runs/evidence || exit 1; done

support: $(VENV)/.develops
	$(PIP) -e '.[dev,caches,quantizers]'
	OMP_NUM_THREADS=1 $(BIN)/python docs/support_table.py

slow: $(VENV)/.develops
	$(PIP) -e '.[dev,caches,quantizers]'
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m pytest tests/pipelines/test_quantizers.py tests/pipelines/caches

clean:
	rm -rf $(VENV) iec-demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.develops: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.runs
