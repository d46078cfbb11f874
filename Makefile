# make book   environment, installation, build of the whole site
# make test   the same environment with test tools, then ruff, pytest and the tests of the built book
PYTHON ?= python3
BIN := .venv/bin
# Modules, not scripts: what a parent environment already has leaves no script in .venv/bin.
BUILD := $(BIN)/python -c "from jupyter_book.cli.main import main; main()" build . -W -n --keep-going

# Triton's own place is the home folder, which a container may not let it write to.
export TRITON_CACHE_DIR ?= $(CURDIR)/_build/.triton

.NOTPARALLEL:
.PHONY: book test test-all clean environment-book environment-test

book: environment-book
	$(BUILD)

test: environment-test
	$(BUILD)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest -m "not slow" --durations=10

test-all: environment-test
	$(BUILD)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest --durations=10

environment-book environment-test: environment-%:
	$(PYTHON) tools/environment.py --for $*

clean:
	rm -rf _build
