# Two commands do everything on a machine with Python 3.11 or newer: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
USER := .venv/.user
READY := .venv/.ready
# Neighbouring tests on the same worker, since they share what is compiled.
WORKERS := -n 2 --dist worksteal
PEERS := .venv/.peers
# What the rest stands on: parameters and data, derivatives, the step, fits and batches, their results, published values.
CORE := architecture autodiff_modes batch constraints contributing derivatives fit_function hard_problems input_arrays \
	linear_predictors many_rows messages moments newton oracles parameter_names restrictions result robust scoring special

.PHONY: demo test fast exhaustive lint format notebooks docs bench bench-batches clean

demo: $(USER)
	$(BIN)/python notebooks/demo.py

test: $(READY)
	$(BIN)/python -m pytest $(WORKERS)

fast: $(READY)
	$(BIN)/python -m pytest $(WORKERS) $(CORE:%=tests/test_%.py)

# Compiled as for a user, with the oracles once more.
exhaustive: $(READY)
	XLA_FLAGS= $(BIN)/python -m pytest $(WORKERS) -m exhaustive
	XLA_FLAGS= $(BIN)/python -m pytest $(WORKERS) tests/test_oracles.py tests/test_families.py

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

notebooks: $(READY)
	$(BIN)/python notebooks/run.py --write

# To be read from disk: site/index.html. The variable keeps the theme from advertising another program.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(PEERS)
	$(BIN)/python benchmarks/run.py

# ARGS="--only spots --size 2000 --first PATH": see benchmarks/batches --help.
bench-batches: $(PEERS)
	$(BIN)/python benchmarks/batches $(ARGS)

# The environment is made anew when the dependencies change, and only then: first what a user of the demo needs, then the
# developers' tools.
$(USER): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fisher_jax needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	touch $(USER)

$(READY): $(USER)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

# Peers that cannot be had here are left out of the tables, with a word.
$(PEERS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps picassosr==0.11.3
	touch $(PEERS)

clean:
	rm -rf .venv
