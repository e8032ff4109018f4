# Everything runs in one virtual environment, made here on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where this is set, each of many processes compiles all that it imports: seconds for coffea.
export PYTHONDONTWRITEBYTECODE :=

# Most of a test is waiting. Two processes of them keep two cores busy.
TEST_PROCESSES := --numprocesses 2 --no-loadscope-reorder

.PHONY: install demo test lint soak bench clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable . --group dev
	touch $@

demo: install
	$(BIN)/sonic-parsl server install
	$(BIN)/sonic-parsl data fetch > /dev/null
	$(BIN)/sonic-parsl run btag_ttbar --site local --output out/ --chunksize 50

test: install lint
	$(BIN)/sonic-parsl server install
	$(BIN)/sonic-parsl data fetch > /dev/null
	$(BIN)/python -m pytest $(TEST_PROCESSES)

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

soak: install
	$(BIN)/sonic-parsl server install
	$(BIN)/python -m tests.faults.soak --minutes 10

bench: install
	$(BIN)/sonic-parsl server install
	mkdir -p out
	$(BIN)/python -m benchmarks.overhead --json out/overhead.json
	$(BIN)/python -m benchmarks.overlap --json out/overlap.json
	$(BIN)/python -m benchmarks.peer_coffea --json out/peer_coffea.json
	$(BIN)/python -m benchmarks.balance --json out/balance.json
	$(BIN)/python -m benchmarks.recovery --json out/recovery.json
	$(BIN)/python -m benchmarks.elasticity --json out/elasticity.json

clean:
	rm -rf $(VENV) out dist
