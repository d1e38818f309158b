# Every target sets up what it needs in .venv, from Python 3.11 or 3.12 alone, and is quick the second time.
#   PYTHON=/path/to/python3.12 make test     with a Python of your choice
#   make test WORKERS=4 ARGS="-k payment"    more processes, some tests only

PYTHON  ?=
WORKERS ?= 2
ARGS    ?=

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/ready

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where this is set, every process would compile every module of every library anew: a second or two each time.
unexport PYTHONDONTWRITEBYTECODE

# A Python named now, other than the one .venv was made with, makes it anew.
ifneq ($(PYTHON),)
ifneq ($(PYTHON),$(shell cat $(VENV)/made-with 2>/dev/null))
$(READY): anew
endif
endif

.DEFAULT_GOAL := help
.PHONY: help demo prefect test paper check bench format lock clean anew

help: ## what can be made
	@echo "Hisob: prepaid electricity, end to end. make ..."
	@sed -n 's/^\([a-z]*\):.*## /  \1\t/p' Makefile | expand -t 12

demo: $(READY) ## a district on real readings, from meters to audit, in under two minutes
	@echo "demo: a district on real readings"
	@$(BIN)/hisob demo $(ARGS)

prefect: $(READY) ## Prefect for the home HISOB_HOME (or hisob-data): server, worker, a load each hour
	@echo "prefect: on $(or $(HISOB_HOME),hisob-data), until Ctrl-C"
	@$(BIN)/python -m flows.local $(or $(HISOB_HOME),hisob-data) $(ARGS)

test: $(READY) ## all tests
	@echo "test: pytest on $(WORKERS) processes"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

paper: $(READY) ## the busiest statement, printed by a real browser where there is one: one sheet of A4
	@echo "paper: Chromium or Chrome (HISOB_BROWSER=/path/to/it; HISOB_PAGES=FOLDER keeps the pages)"
	@$(BIN)/python -m pytest -q tests/test_statement.py -k a4

check: $(READY) ## ruff, mypy, and who may import whom
	@echo "check: ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "check: mypy"
	@$(BIN)/mypy
	@echo "check: who may import whom, and what the rules may touch"
	@$(BIN)/python -m pytest -q tests/test_imports.py

bench: $(READY) ## speed, as a table and as bench/latest.json
	@echo "bench: the machine should have nothing else to do"
	@$(BIN)/python -m bench $(ARGS)

format: $(READY) ## the sources, as check wants them
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

lock: $(READY) ## requirements.lock anew from pyproject.toml (ARGS=--upgrade for the newest releases)
	@echo "lock: requirements.lock for Python 3.11 and 3.12"
	@$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --all-extras \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--output-file requirements.lock $(ARGS) pyproject.toml

clean: ## take away .venv and what the tools left behind (homes such as hisob-data stay)
	@echo "clean: .venv, caches"
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis bench/latest.json
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the set-up ------------------------------------------------------------------------------------------------------
# uv comes into .venv by pip, at the release and hash of the lock; uv then brings the rest, ten times as fast.
# Where uv cannot reach what pip is set up to reach (it does not read pip's settings), pip does it all.

define FITS
import sys
if not (3, 11) <= sys.version_info[:2] < (3, 13):
    sys.exit("is Python %d.%d" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError:
    sys.exit("has no venv module (Debian, Ubuntu: apt install python3-venv)")
endef
export FITS

$(READY): requirements.lock pyproject.toml
	@python=""; seen=""; \
	for p in $(if $(PYTHON),"$(PYTHON)",$(wildcard $(BIN)/python) python3.12 python3.11 python3 python); do \
		if ! command -v "$$p" >/dev/null 2>&1; then why="is not found"; \
		elif why=$$("$$p" -c "$$FITS" 2>&1); then python=$$p; break; fi; \
		seen="$$seen    $$p $$(echo "$$why" | head -n 1)\n"; \
	done; \
	if [ -z "$$python" ]; then \
		echo "set-up: Hisob needs Python 3.11 or 3.12, and none of these is one:" >&2; \
		printf "$$seen" >&2; \
		echo "Install one, or name one: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi; \
	is=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	has=$$($(BIN)/python -c 'import sys, pip; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true); \
	if [ "$$is" != "$$has" ]; then \
		echo "set-up: $(VENV) with Python $$is"; \
		rm -rf $(VENV); \
		"$$python" -m venv $(VENV) || { echo "set-up: $$python could not make $(VENV)" >&2; exit 1; }; \
	fi
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.lock
	@grep -q "^uv==$$($(BIN)/uv --version 2>/dev/null | cut -d ' ' -f 2) " $(VENV)/uv.lock || { \
		echo "set-up: uv"; \
		$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r $(VENV)/uv.lock; }
	@echo "set-up: the libraries of requirements.lock (1.2 GB on disk, once)"
	@quiet=; [ -t 2 ] || quiet=--quiet; \
	$(BIN)/uv pip sync $$quiet --python $(BIN)/python --require-hashes requirements.lock || { \
		echo "set-up: uv could not, trying pip (some minutes)"; \
		$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock; } || { \
		echo "set-up: the libraries could not be installed; the reason stands above. Then the same make again." >&2; \
		exit 1; }
	@echo "set-up: hisob"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --offline --no-deps --no-build-isolation --editable .
	@echo "$(PYTHON)" > $(VENV)/made-with
	@touch $(READY)
