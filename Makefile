# make venv   build .venv in the checkout, with everything installed
# make run    the same, fetch the starter model if there is no model, and serve in the foreground; settings are taken from
#             the environment and from here (make run OSU_PORT=8080)
# make test   the same, and run every check and test that takes only Python, pip and a C/C++ compiler
# make test-native  the tests of the CPU kernels that need no MLX, under the sanitizers; part of make test
# make docs   build docs/ as a site, .cache/docs/index.html; part of make test
# make test-system  install clients and programs from npm and Debian, and run the tests that take them
# make clients  install only the clients: Node.js packages, LangChain, LiteLLM, Chromium
# make bench  the same, run the comparisons of docs/performance.md and draw its figure; nothing else should run meanwhile
#             (BENCH="--llama-server PROGRAM --gguf FILE" compares with llama.cpp as well)
# make pictures  the same, and take the pictures of docs/page.md anew, in Chromium
# make clean  remove what these made

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
# What runs on a CPU-only Linux and on a Mac alike; elsewhere say EXTRAS=cuda.
EXTRAS ?= cpu

DOCS = .cache/docs
CLIENTS = .cache/clients
PROGRAMS = .cache/system
# A test module each.
SIDE_BY_SIDE = --numprocesses=auto --maxprocesses=4 --dist=loadfile
PIP = -m pip install --quiet --disable-pip-version-check

.PHONY: venv clients run test test-system test-native check docs lint types bench pictures clean

venv: $(VENV)/installed $(VENV)/kernels-installed

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --upgrade "pip>=23.2"
	$(BIN)/python $(PIP) -e ".[$(EXTRAS),test,docs,bench,dev]"
	touch $@

# The CPU kernels need a C++ compiler and Python's headers; without them everything works, more slowly. Each `make venv`
# tries again, until they are there.
$(VENV)/kernels-installed: $(VENV)/installed native/pyproject.toml native/CMakeLists.txt $(wildcard native/*/*)
	@if [ "$$(uname)" != Linux ] || [ "$(EXTRAS)" != cpu ] \
		|| $(BIN)/python $(PIP) ./native > $(VENV)/kernels.log 2>&1; then \
		touch $@; \
	else \
		echo "The CPU kernels cannot be built here ($(VENV)/kernels.log says why): quantised models will be slow."; \
	fi

# LiteLLM needs another version of openai than the tests here: it has an environment of its own.
clients: venv $(CLIENTS)/installed

$(CLIENTS)/installed: $(VENV)/installed tests/clients/requirements.txt tests/clients/package-lock.json \
		tests/clients/chromium/package-lock.json
	PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --silent --prefix tests/clients
	$(PYTHON) -m venv $(CLIENTS)
	# The pip that Python 3.11 brings finds no versions that go together.
	$(CLIENTS)/bin/python $(PIP) --upgrade "pip>=25"
	$(CLIENTS)/bin/python $(PIP) -r tests/clients/requirements.txt
	PATH="$(CURDIR)/$(BIN):$$PATH" tests/clients/chromium/install .cache/browser
	touch $@

run: venv
	@$(BIN)/osaurus list | grep -q . || $(BIN)/osaurus pull smollm2:135m
	$(BIN)/twistd -n --pidfile= osaurus

# The first three take one processor each.
test: venv
	$(MAKE) --jobs=2 lint types docs
	$(MAKE) test-native check

test-system: clients
	tests/system/install $(PROGRAMS)
	OSU_TEST_SYSTEM=1 $(BIN)/python -m pytest -m system $(SIDE_BY_SIDE)

# Once for each family of sanitizers; as they are they are tested through MLX, in tests/test_kernels.py. What threads
# share is the same for all instruction sets.
test-native: venv
	for sanitizers in address,undefined thread; do \
		portable=OFF; if [ "$$sanitizers" = thread ]; then portable=ON; fi; \
		PATH="$(CURDIR)/$(BIN):$$PATH" cmake -G Ninja -S native -B ".cache/native-$$sanitizers" \
			-DWITH_MLX=OFF -DWITH_TESTS=ON -DSANITIZE="$$sanitizers" -DPORTABLE_ONLY=$$portable > /dev/null \
		&& PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build ".cache/native-$$sanitizers" > /dev/null \
		&& UBSAN_OPTIONS=halt_on_error=1 ".cache/native-$$sanitizers/kernels_test" || exit 1; \
	done

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

check: venv
	$(BIN)/python -m pytest -m "not system" $(SIDE_BY_SIDE)

# All of it each time: a warning is given where a page is read, and not again while it stays as it is.
docs: venv
	$(BIN)/sphinx-build --builder html --fail-on-warning --keep-going --nitpicky --fresh-env --quiet docs $(DOCS)

bench: venv
	OSU_MODELS_DIR=.cache/models $(BIN)/osaurus pull smollm2:135m
	$(BIN)/python benchmarks/run.py .cache/models --json .cache/measured.jsonl $(BENCH)
	$(BIN)/python benchmarks/plot.py .cache/measured.jsonl docs/performance.svg

pictures: clients
	$(BIN)/python -m tests.clients.pictures docs/pictures

clean:
	rm -rf $(VENV) .cache tests/clients/node_modules tests/clients/chromium/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
