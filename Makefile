# Everything a developer or CI does. `make setup` runs by itself where it is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.run-stamp
STAMP := $(VENV)/.setup-stamp

# Tests start many processes. Without bytecode each of them would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE

# The JavaScript client needs Node.js. Without it, these steps are skipped with a message.
NPM := $(shell command -v npm 2>/dev/null)
JS_STAMP := js/node_modules/.setup-stamp
ifeq ($(NPM),)
JS_READY :=
js = @echo "skipped: $(1) of the JavaScript client: there is no npm here"
else
JS_READY := $(JS_STAMP)
js = cd js && npm run --silent $(2)
endif

# So does the page of an example, whose packages only the tests of that example need.
NOTES := examples/notes/web
NOTES_STAMP := $(NOTES)/node_modules/.setup-stamp
NOTES_READY := $(if $(NPM),$(NOTES_STAMP))

.PHONY: setup demo dist test test-python coverage test-js test-slow test-long mutants autobahn soak chaos lint format docs instructions bench fuzz clean

setup: $(STAMP) $(JS_READY) $(NOTES_READY)

# The environment of the demo, which is that of users.
$(RUN_STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "WSE needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[scram]'
	@touch $(RUN_STAMP)

# The environment of tests, linters and the documentation.
$(STAMP): $(RUN_STAMP) tests/browser/install_chromium.sh tests/deploy/install_programs.sh
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[scram,uvicorn,aiohttp,nats,redis,cli,reload,uvloop,prometheus,otel]' --group dev
	@sh tests/browser/install_chromium.sh
	@sh tests/deploy/install_programs.sh
	@touch $(STAMP)

$(JS_STAMP): js/package-lock.json
	cd js && npm ci --ignore-scripts --no-audit --no-fund --silent
	@touch $(JS_STAMP)

$(NOTES_STAMP): $(NOTES)/package-lock.json
	@cd $(NOTES) && npm ci --ignore-scripts --no-audit --no-fund --silent || echo "The tests of examples/notes that need Vite will be skipped: npm cannot install it here."
	@mkdir -p $(@D) && touch $@

demo: $(RUN_STAMP)  ## a chat server on port 4200 with three devices, then yours
	$(BIN)/python examples/chat/demo.py $(ARGS)

test: test-python test-js  ## all tests except the slow ones

test-python: $(STAMP) $(NOTES_READY)  ## on all cores
	$(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS)

coverage: $(STAMP)  ## the same tests with branch coverage, which takes half as long again
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -n auto --dist loadgroup $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

test-js: $(STAMP) $(JS_READY)
	$(call js,tests,test)

test-slow: $(STAMP)  ## the slow tests, one after the other, because some of them measure
	$(BIN)/python -m pytest -m slow $(ARGS)

test-long: $(STAMP)  ## models, stories and soaks of many minutes each, of which the other tests run short forms
	$(BIN)/python -m pytest -m long $(ARGS)

autobahn: $(STAMP)  ## RFC 6455 and 7692 by the Autobahn TestSuite; ARGS=--full adds the longest cases
	$(BIN)/python tests/autobahn/run.py $(ARGS)

.PHONY: pictures
pictures: $(STAMP)  ## the pictures of the documentation that tests take
	WSE_ARTIFACTS=docs/screenshots $(BIN)/python -m pytest -m slow -k picture tests/browser/test_operations.py

soak: $(STAMP)  ## ten minutes of 2,000 clients that connect, send messages, call and leave
	$(BIN)/python tests/soak/soak.py $(ARGS)

chaos: $(STAMP)  ## clusters under faults, on both engines; ARGS="--engine nats --nemesis kill --seconds 30" for less
	PYTHONPATH=tests $(BIN)/python -m chaos $(ARGS)

lint: $(STAMP) $(JS_READY) $(NOTES_READY)  ## style, types, and the directions of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/unit/test_architecture.py
	$(call js,lint,lint)
	$(call js,types,types)
	$(call js,the package,package)
	@if test -d $(NOTES)/node_modules/vite; then cd $(NOTES) && npm run --silent types; else echo "skipped: types of examples/notes: Vite is not installed"; fi

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

instructions: $(STAMP)  ## instruction counts of the core, compared with those recorded for this build of Python
	$(BIN)/python bench/instructions.py $(ARGS)

bench: $(STAMP)  ## WSE and other servers, side by side
	$(BIN)/python bench/run.py $(ARGS)

.PHONY: bench-inbox
bench-inbox: $(STAMP)  ## what is kept for users who are away, beside Socket.IO's streams adapter
	$(BIN)/python bench/inbox.py $(ARGS)

.PHONY: bench-cluster
bench-cluster: $(STAMP)  ## a cluster, compared with a single node and with other libraries
	$(BIN)/python bench/cluster.py $(ARGS)

# atheris is large, so only this target installs it. Without a wheel for it, seeds are changed at random instead.
FUZZ_STAMP := $(VENV)/.fuzz-stamp
$(FUZZ_STAMP): $(STAMP)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --group fuzz
	@touch $(FUZZ_STAMP)

fuzz: $(FUZZ_STAMP)  ## ten minutes of random inputs; ARGS="--seconds 60 --least 0 server" for less
	PYTHONPATH=tests $(BIN)/python -m fuzz $(ARGS)

# mutmut changes one module in many small ways, and runs the tests that reach each change.
MUTANTS_STAMP := $(VENV)/.mutants-stamp
$(MUTANTS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group mutants
	@touch $(MUTANTS_STAMP)

mutants: $(MUTANTS_STAMP)  ## finds changes that no test notices: make mutants MODULE=src/wse/core/cluster/liveness.py
	PYTHONPATH=tests $(BIN)/python -m mutants $(MODULE) $(ARGS)

dist: $(STAMP) $(JS_READY)  ## the packages of both languages, into dist/; TAG=v1.2.3 is the tag that they must have
	rm -rf dist
	$(BIN)/python -c 'import sys, tomllib; v = tomllib.load(open("pyproject.toml", "rb"))["project"]["version"]; sys.exit("$(TAG)" not in ("", f"v{v}") and f"the version is {v}, not $(TAG)")'
	$(BIN)/python -m hatchling build -t sdist -d dist
	mkdir dist/source && tar xzf dist/wse-*.tar.gz -C dist/source
	cd dist/source/wse-* && "$(abspath $(BIN))/python" -m hatchling build -t wheel -d ../..
	rm -r dist/source
	cd js && npm pack --silent --pack-destination ../dist

clean:
	rm -rf $(VENV) js/node_modules $(NOTES)/node_modules $(NOTES)/dist site build dist .coverage* .artifacts .mypy_cache .pytest_cache .ruff_cache .hypothesis
