# make demo   the whole way on the embedded corpus: features, training, scores, plots
# make real-demo CORPUS=folder [SET="key=value .."]   the same with real encoders on a corpus of your own: docs/encoders.md
# make test   formatting, lint, types and tests
# make soak   the tests that take long: Ray, experiments of DVC, benchmarks, many kills
# make processors   exactness and the demo's score, on every processor that this one can play
# make docs   the pages of docs/ as a site, site/index.html
# All make .venv from requirements.lock first, if it is missing or out of date.

VENV := .venv
BIN := $(VENV)/bin
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && { echo $$python; break; }; done)

export PATH := $(CURDIR)/$(BIN):$(PATH)
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH
# uv installs no bytecode: without it every process compiles torch again, 6 s instead of 2
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo real-demo test soak processors docs lint format lock clean

demo: $(VENV)/installed
	dvc repro
	@cat results/table.md results/robustness/table.md
	@echo "open results/report/index.html in a browser: scores, and every turn with what the model says of it"

real-demo: $(VENV)/installed
	@test -n "$(CORPUS)" || { echo "name a folder: make real-demo CORPUS=/data/my-corpus"; exit 2; }
	python scripts/real_demo.py "$(CORPUS)" $(foreach one,$(SET),--set "$(one)")

test: lint
	pytest

soak: $(VENV)/installed
	pytest -m soak

processors: $(VENV)/installed
	pytest -m processors --dist=load -rps tests/test_processors.py

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict
	@echo "open site/index.html; mkdocs serve has a search, too"

lint: $(VENV)/installed
	ruff format --check .
	ruff check .
	mypy

format: $(VENV)/installed
	ruff format .
	ruff check --fix .

$(VENV)/installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; name one with make PYTHON=/path/to/python"; exit 2; }
	@if command -v uv >/dev/null; then \
		echo "installing with uv"; \
		uv venv --quiet --allow-existing --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV) && \
		uv pip install --quiet --python $(BIN)/python -r requirements.lock && \
		uv pip install --quiet --python $(BIN)/python --no-deps --editable .; \
	else \
		echo "installing with pip"; \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --quiet -r requirements.lock && \
		$(BIN)/python -m pip install --quiet --no-deps --editable .; \
	fi
	@touch $@

lock:  # names and versions for Python 3.11 and 3.12, from pyproject.toml; needs uv
	uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-header --no-annotate \
		--no-emit-index-url pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV)
