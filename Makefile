# Everything runs in .venv, made from requirements.txt. Any target can be interrupted and run again.
PYTHON ?= python3
PORT   ?= 8000
LAB    := jupyterlab==4.6.6
LINT   := ruff check --quiet mc tests book examples setup.py

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export OMP_NUM_THREADS := 1
export PYTHONHASHSEED := 0
MAKEFLAGS += --silent --no-print-directory

INPUTS := $(wildcard tests/test_*.py) $(shell find _config.yml _toc.yml CHANGELOG.md book nbs examples -type f \
            -not -path '*/__pycache__/*' -not -path '*/vendor/*' -not -path '*/.*' 2> /dev/null)

.PHONY: help book serve test check lab bench sync clean environment chromium smoke chapters tests
help:
	echo "make book    build the book (first the environment, the package and the notebooks, where out of date)"
	echo "make serve   build it and show it at http://127.0.0.1:$(PORT)"
	echo "make test    build it, then run every test: equations, notebooks, command line, the book in a browser"
	echo "make check   while one works: sync, lint and the fast tests (two minutes)"
	echo "make lab     write: JupyterLab on nbs/*/*.md, the sources of everything (then make sync)"
	echo "make sync    bring mc/ and nbs/*.ipynb up to date with nbs/*/*.md"
	echo "make bench   run every benchmark in full and record its results (long)"
	echo "make clean   remove what was built (not .venv)"

# $(call quietly,NAME,COMMAND): the output goes to a log; when the command fails, what matters of it is shown
quietly = mkdir -p _build/logs && { { $(2); } > _build/logs/$(1).log 2>&1 || { \
    { grep -E 'WARNING:|ERROR|[Ee]rror:' _build/logs/$(1).log || tail -n 20 _build/logs/$(1).log; } | tail -n 30 >&2; \
    echo "make: $(1) failed; the whole log is _build/logs/$(1).log" >&2; exit 1; }; }

environment: .venv/.packages .venv/.mc

.venv/.packages: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
	  || { echo "Python 3.11 to 3.14 is needed, and $(PYTHON) is not; try make PYTHON=/path/to/python3" >&2; exit 1; }
	[ -x .venv/bin/pip ] || $(PYTHON) -m venv .venv > /dev/null \
	  || { echo "$(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; rm -rf .venv; exit 1; }
	echo "environment: torch (about half a minute)"
	$(call quietly,torch,pip install --disable-pip-version-check $$(grep -oE '^(torch|uv)==[^ ]*' $<))
	echo "environment: the other packages (seconds, or a minute where uv does not reach them and pip does)"
	$(call quietly,packages,uv pip install --python .venv -r $< || pip install --disable-pip-version-check -r $<)
	touch $@

.venv/.mc: pyproject.toml .venv/.packages
	$(call quietly,mc,pip install --disable-pip-version-check --no-deps --no-build-isolation -e .)
	touch $@

sync: environment
	python book/_tools/nbtool.py sync

# A stamp, not the notebook: one whose cell failed is kept too.
smoke: $(patsubst nbs/bench/%.yaml,book/runs/%/.smoke,$(wildcard nbs/bench/*.yaml))
book/runs/%/.smoke: nbs/bench/%.ipynb nbs/bench/%.yaml $(shell find mc results -name '*.py' -o -path '*/cpu/*.json' 2> /dev/null)
	echo "benchmark: $*, smoke profile (under a minute)"
	rm -rf book/runs/$*    # records made by an older mc
	mc bench $* --profile smoke --out book/runs
	touch $@

# these go on from the records of others
book/runs/length_of_training/.smoke book/runs/gates/.smoke: book/runs/extrapolation/.smoke
book/runs/few_or_many/.smoke book/runs/gates/.smoke: book/runs/state_per_byte/.smoke

# Each step may change what the next one depends on, so each gets a fresh make.
book: sync
	$(MAKE) -j2 smoke
	$(MAKE) _build/html/.complete
	echo "The book is _build/html/index.html; make serve shows it."

# Sphinx reports a page's warnings only when it reads the page, and rewrites only changed pages:
# after a failure, or when what all pages share has changed, every page is built again.
_build/html/.complete: $(INPUTS)
	echo "book: building"
	$(if $(filter-out nbs/% book/runs/% %.md,$?),rm -f $@)
	[ -f $@ ] && all= || { all=--all; rm -rf _build/html; }; rm -f $@; $(call quietly,book,jupyter-book build . -W -n --keep-going $$all)
	touch $@
	python book/_tools/shown.py || true

serve: book
	echo "http://127.0.0.1:$(PORT) (Ctrl-C stops)"
	python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html > /dev/null 2>&1 \
	  || echo "stopped; if port $(PORT) is taken, make serve PORT=8001"

chromium:
	for c in "$$CHROMIUM" chromium chromium-browser google-chrome; do command -v "$$c" > /dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  echo "chromium: installing it for the browser tests"; \
	  ($(call quietly,chromium,apt-get update && apt-get install -y --no-install-recommends chromium)) && exit 0; fi; \
	echo "No Chromium, so the browser tests will be skipped. Debian: sudo apt-get install chromium; or set CHROMIUM=/path/to/it"

# While one core builds the book, the other executes the chapters again and compares what they print.
test:
	$(MAKE) -j2 environment chromium
	$(MAKE) sync
	$(LINT)
	$(MAKE) -j2 smoke
	$(MAKE) -j2 tests chapters

tests: _build/html/.complete
	pytest -q tests -n 2 --dist worksteal

chapters:
	mkdir -p _build/logs
	pytest -q tests/conftest.py nbs --ignore=nbs/bench --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg > _build/logs/chapters.log 2>&1 \
	  || { cat _build/logs/chapters.log; exit 1; }
	echo "chapters: $$(tail -n 1 _build/logs/chapters.log)"

check: sync
	$(LINT)
	pytest -q tests -m "not slow" -n 2 --dist worksteal

# The text notebooks open as notebooks; the setting stays inside .venv.
lab: environment
	python -c 'import jupyterlab' 2> /dev/null || $(call quietly,jupyterlab,pip install --disable-pip-version-check $(LAB))
	JUPYTER_CONFIG_DIR=$(CURDIR)/.venv/etc/jupyter jupytext-config set-default-viewer > /dev/null
	jupyter lab --notebook-dir=nbs

# the first are those from whose weights others go on, as the records say (tests/test_ledger.py)
BENCHES := extrapolation state_per_byte length_of_training $(filter-out extrapolation state_per_byte length_of_training,$(basename $(notdir $(wildcard nbs/bench/*.yaml))))
bench: sync
	for b in $(BENCHES); do mc bench $$b --profile cpu || exit; done

clean:
	echo "removing _build, book/runs, book/_static/vendor and caches"
	rm -rf _build book/runs book/_static/vendor *.egg-info build .pytest_cache .hypothesis
