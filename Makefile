# make book   environment, installation, build of the whole site
# make pdf    the whole book as _build/book.pdf, printed by Chromium
# make test   the same environment with test tools, then ruff, mypy, pytest and the tests of the built book
PYTHON ?= python3
BIN := .venv/bin
# Modules, not scripts: what a parent environment already has leaves no script in .venv/bin.
BUILD := $(BIN)/python -c "from jupyter_book.cli.main import main; main()" build . -W -n --keep-going
PYTEST := $(BIN)/python -m pytest --durations=10
# One more than there are processors, up to five: those of the browsers wait for most of their time.
WORKERS := $(shell $(PYTHON) -c "import os; print(min((os.cpu_count() or 1) + 1, 5))")
SIDE_BY_SIDE := --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

# Triton's own place is the home folder, which a container may not let it write to.
export TRITON_CACHE_DIR ?= $(CURDIR)/_build/.triton

.NOTPARALLEL:
.PHONY: book pdf test test-all clean environment-book environment-test

book: environment-book
	$(BUILD)

pdf: environment-book
	@test -n "$(CHROMIUM)" || { echo "make pdf prints with Chromium, which is not here (Debian: apt install chromium)"; exit 1; }
	$(BUILD) --builder singlehtml
	"$(CHROMIUM)" --headless $(if $(filter 0,$(shell id -u)),--no-sandbox) --no-pdf-header-footer \
	  --virtual-time-budget=120000 --print-to-pdf=_build/book.pdf "file://$(CURDIR)/_build/singlehtml/intro.html"

test: environment-test
	$(BUILD)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(PYTEST) -m "not slow" $(SIDE_BY_SIDE)

test-all: environment-test
	$(BUILD)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(PYTEST) $(SIDE_BY_SIDE)

environment-book environment-test: environment-%:
	$(PYTHON) tools/environment.py --for $*

clean:
	rm -rf _build
