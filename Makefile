# Everything a newcomer needs is here: each target makes the virtual environment it runs in.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Linux has no Metal: mlx comes with a CPU backend of its own there, unless MLX says "cuda12" or "cuda13".
MLX ?= $(if $(filter Linux,$(shell uname -s)),cpu,)
comma := ,
EXTRAS := dev,docs$(if $(MLX),$(comma)$(MLX))

# Which aider is tested against this server: it pins all that it needs, and so has a virtual environment of its own.
AIDER_VERSION := 0.86.2
JS := tests/clients/js
OPENCODE := tests/clients/opencode

.PHONY: demo test clients check format schema docs bench wheel clean

demo: $(VENV)/.installed
	$(BIN)/mlx-roster demo

# Most of a test's time is spent waiting for processes: several at once are that much faster, on two cores too. Who is
# through with its own takes from the others, since some take a thousand times as long.
test: $(VENV)/.installed-dev
	$(BIN)/pytest -n 3 --dist worksteal

clients: $(VENV)/.installed-dev .venv-clients/.installed .venv-aider/.installed \
  $(JS)/node_modules/.installed $(OPENCODE)/node_modules/.installed
	.venv-clients/bin/pytest tests/clients

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
	$(BIN)/python scripts/roster_tables.py

# Not with --quiet: it keeps warnings from being counted, and nothing is strict then.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.installed-dev
	$(BIN)/python -m bench.serving

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) .venv-clients .venv-aider $(JS)/node_modules $(OPENCODE)/node_modules dist site

# What a venv that failed has left (Debian's Python without python3-venv) would pass for one the next time.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("this needs Python 3.11 or later: make PYTHON=python3.12 has another" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV) || (rm -rf $(VENV); false)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.$(if $(MLX),[$(MLX)])'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@ $(VENV)/.installed

.venv-clients/.installed: pyproject.toml constraints-clients.txt
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints-clients.txt '.[clients]'
	touch $@

# There is no aider for Python 3.13: its test then says so, and is skipped.
.venv-aider/.installed: Makefile
	$(PYTHON) -m venv .venv-aider
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 13))' || \
	  .venv-aider/bin/python -m pip install --quiet --disable-pip-version-check --no-compile aider-chat==$(AIDER_VERSION)
	touch $@

%/node_modules/.installed: %/package.json
	cd $* && npm install --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@
