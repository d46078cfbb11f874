# make book   environment, installation, build of the whole site
# make test   the same environment with test tools, then ruff, pytest and the tests of the built book
PYTHON ?= python3
BIN := .venv/bin
BUILD := $(BIN)/jupyter-book build . -W -n --keep-going

.PHONY: book test test-all clean environment-book environment-test

book: environment-book
	$(BUILD)

test: environment-test
	$(BUILD)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -m "not slow" --durations=10

test-all: environment-test
	$(BUILD)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest --durations=10

environment-book environment-test: environment-%:
	$(PYTHON) tools/environment.py --for $*

clean:
	rm -rf _build
