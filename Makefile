# `make demo` and `make test` need nothing done before: the first one makes the environment in .venv.

PYTHON ?= python3
READY := .venv/.ready

.PHONY: demo test lint format clean

demo: $(READY)
	.venv/bin/python examples/demo.py

test: $(READY)
	.venv/bin/python tools/test.py

lint: $(READY)
	.venv/bin/python tools/test.py --only ruff format pyright imports

format: $(READY)
	.venv/bin/python -m ruff check --no-cache --fix --quiet . || true
	.venv/bin/python -m ruff format .

clean:
	rm -rf .venv

$(READY): pyproject.toml tools/environment.sh
	PYTHON="$(PYTHON)" bash tools/environment.sh
	@touch $(READY)
