# Everything a newcomer needs is here: each target makes the virtual environment it runs in.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Linux has no Metal: mlx comes with a CPU backend of its own there, unless MLX says "cuda12" or "cuda13".
MLX ?= $(if $(filter Linux,$(shell uname -s)),cpu,)
comma := ,
EXTRAS := dev$(if $(MLX),$(comma)$(MLX))

.PHONY: demo test check format schema bench wheel clean

demo: $(VENV)/.installed
	$(BIN)/mlx-roster demo

test: $(VENV)/.installed-dev
	$(BIN)/pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(VENV)/.installed-dev
	$(BIN)/python -m mlx_roster.config.schema > docs/roster.schema.json

bench: $(VENV)/.installed-dev
	$(BIN)/python -m bench.serving

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.$(if $(MLX),[$(MLX)])'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@ $(VENV)/.installed
