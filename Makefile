# `make bench` on a fresh machine: python3 >= 3.11 and make are all it takes.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN = $(VENV)/bin
READY = $(VENV)/.ready
EXTRAS ?= dev,sae-lens
JOBS ?= 2
# One thread a process: small products gain little from threads, and waiting threads take time from each other.
export OMP_NUM_THREADS ?= 1

.PHONY: bench test test-heavy bench-engine evidence lint docs clean

bench: $(READY)
	$(BIN)/python -m pytest benchmarks/ -n $(JOBS)

# Tests of one module share what they measured, so one worker runs them all.
test: $(READY) lint
	$(BIN)/python -m pytest tests -n $(JOBS) --dist loadscope -m 'not heavy and not hub'

# What takes longer than the rest together: packaging, clusters, recorded numbers, the hub where it can be reached.
test-heavy: $(READY)
	$(BIN)/python -m pytest tests -n $(JOBS) --dist loadscope -m 'heavy or hub'

# With all cores: what one process of a run would have.
bench-engine: $(READY)
	OMP_NUM_THREADS=$$(nproc) $(BIN)/python -m pytest benchmarks/engine -o python_files='bench_*.py'

evidence: $(READY)
	$(BIN)/python -m evidence

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.lint.language

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c $(CONSTRAINTS)
	$(BIN)/python -m pip install --quiet torch -c $(CONSTRAINTS)
	$(BIN)/python -m pip install --quiet -e '.[$(EXTRAS)]' -c $(CONSTRAINTS)
	# The SAEs of dictionary_learning are read as it reads them; what it trains with is not needed for that.
	$(BIN)/python -m pip install --quiet --no-deps dictionary-learning -c $(CONSTRAINTS)
	touch $@

# The reference is read from the sources, so that the site's environment needs no torch. Warnings are errors.
docs: .venv-docs/.ready
	.venv-docs/bin/mkdocs build --strict

.venv-docs/.ready: constraints-docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet mkdocs-material 'mkdocstrings[python]' -c constraints-docs.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-* .pytest_cache .mypy_cache .ruff_cache .benchmarks
