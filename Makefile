# Everything runs in one virtual environment, made here on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test lint clean

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
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf $(VENV) out dist
