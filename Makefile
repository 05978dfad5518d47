# Two commands: `make demo` runs the whole recipe, `make test` runs all checks. Everything lives in .venv.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test lint clean

demo: .venv/demo
	$(BIN)/slam run recipes/demo.toml

# two processes of tests on two cores: more threads would only wait for each other, for minutes
test: export OMP_NUM_THREADS = 1
test: .venv/dev lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing slam into .venv (a minute or two)"
	$(PIP) install --constraint constraints.txt --editable '.[espeak]'
	touch $@

.venv/dev: .venv/demo
	@echo "installing what the tests need"
	$(PIP) install --constraint constraints.txt --editable '.[espeak,dev]'
	touch $@

clean:
	rm -rf .venv work
