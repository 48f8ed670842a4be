# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` need Python 3.11 or newer, make and git; they set up the rest: Debian packages that are
# missing, a virtual environment in .venv, and the engine built for the host.

PYTHON ?= python3
CC := gcc
BUILD := build
VENV := .venv
PYTEST_JOBS ?= 2
PYTEST_ARGS ?=
TEST_TIMEOUT ?= 2400

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: bench-planner bench-update help demo test test-zephyr lint engine baremetal host-board setup lock clean distclean

help:
	@echo "make demo       plan, sign, boot the host board, switch its model over the air (a minute after set-up)"
	@echo "make test       everything: style, planner, service, engine on the host and on five emulated cores"
	@echo "make engine     the engine and the search for the host: $(LIB), $(LIB_SAN), $(SEARCH)"
	@echo "make test-zephyr  the Zephyr module's samples and suites on emulated boards; needs a Zephyr tree"
	@echo "make test-riot  the RIOT module's samples and suites, native, in QEMU, compiled; needs a RIOT tree"
	@echo "make bench-riot  updates over CoAP whose board is killed two hundred times"
	@echo "make lint       style, types and stale generated files"
	@echo "make bench-planner  the planner's tables beside the peers' numbers, each plan executed: build/bench/planner.json"
	@echo "make fuzz       libFuzzer, FUZZ_SECONDS=60 for each of four targets"
	@echo "make coverage   lines and branches of parser, verifier and update core that the tests reach"
	@echo "make bench-update  power cuts of the update core, a million and more: build/bench/update.json"
	@echo "make bench-engine  instructions, RAM and flash beside the peers': build/bench/engine.json"
	@echo "make baremetal  firmware images for the emulated cores"
	@echo "make lock       requirements.lock anew from pyproject.toml"
	@echo "make clean      remove build results; distclean: and the virtual environment"

# ---------------------------------------------------------------- set-up

# Debian packages, by what needs them. `$(call apt,stamp,packages)` installs those that are missing, as root or by sudo.
APT_BASE := $(if $(shell command -v $(CC)),,gcc libc6-dev)
APT_BASE += $(if $(shell $(PYTHON) -c 'import ensurepip' 2>/dev/null && echo y),,python3-venv)
# The host board checks signatures with Mbed TLS.
APT_HOST := $(if $(wildcard /usr/include/psa/crypto.h),,libmbedtls-dev)
APT_TEST := gcc libc6-dev clang clang-format libclang-rt-14-dev \
	gcc-arm-none-eabi picolibc-arm-none-eabi gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf \
	qemu-system-arm qemu-system-misc

define apt
	@missing=""; \
	for package in $(1); do \
	    dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q '^install ok' || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
	    if ! command -v apt-get >/dev/null; then \
	        echo "not a Debian system; install what corresponds to:$$missing"; \
	    else \
	        sudo=""; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	        echo "installing$$missing"; \
	        $$sudo apt-get update -q && \
	        DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -q --no-install-recommends $$missing; \
	    fi; \
	fi
endef

$(BUILD)/.apt-base: | $(BUILD)
	$(if $(strip $(APT_BASE)),$(call apt,$(APT_BASE)))
	@touch $@

$(BUILD)/.apt-host: | $(BUILD)/.apt-base
	$(if $(strip $(APT_HOST)),$(call apt,$(APT_HOST)))
	@touch $@

$(BUILD)/.apt-test: Makefile | $(BUILD)
	$(call apt,$(APT_TEST))
	@touch $@

$(VENV)/.installed: requirements.lock pyproject.toml | $(BUILD)/.apt-base
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Weft needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing the packages of requirements.lock into $(VENV), once; this takes a minute or two"
	$(VENV)/bin/pip install --disable-pip-version-check --progress-bar off -q -r requirements.lock
	$(VENV)/bin/pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@

setup: $(VENV)/.installed

$(BUILD):
	mkdir -p $@

# What `make demo` and `make test` install, resolved anew. protobuf is the one that grpcio-health-checking and the
# generated stubs agree on.
lock: | $(BUILD)
	rm -rf $(BUILD)/lock
	$(PYTHON) -m venv $(BUILD)/lock
	$(BUILD)/lock/bin/pip install --disable-pip-version-check -q setuptools wheel '.[compare,dev,quantize]'
	{ echo "# Written by \`make lock\` (see Makefile): what \`make demo\` and \`make test\` install, pinned."; \
	$(BUILD)/lock/bin/pip freeze --all --exclude pip --exclude weft; } \
	> requirements.lock
	rm -rf $(BUILD)/lock

# ---------------------------------------------------------------- engine for the host

ENGINE := $(BUILD)/engine
LIB := $(ENGINE)/libweft.so
LIB_SAN := $(ENGINE)/libweft_san.so
ENGINE_SRC := $(wildcard module/src/*.c module/src/kernels_ref/*.c)
ENGINE_HDR := $(wildcard module/include/weft/*.h module/src/*.h module/src/kernels_ref/*.h)
ENGINE_CFLAGS := -std=c99 -Wall -Wextra -Wconversion -Werror -fPIC -Imodule/include -Imodule/src -DWEFT_COUNT=1
SAN_CFLAGS := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all

# The planner's search, for the host only.
SEARCH := $(ENGINE)/libweft_search.so
SEARCH_SRC := $(wildcard planner_service/search/*.c)
SEARCH_CFLAGS := -std=c99 -pedantic -Wall -Wextra -Wconversion -Werror -fPIC

engine: $(LIB) $(LIB_SAN) $(SEARCH)

$(LIB): $(ENGINE_SRC) $(ENGINE_HDR) Makefile | $(BUILD)/.apt-base
	@mkdir -p $(@D)
	$(CC) $(ENGINE_CFLAGS) -O2 -shared -o $@ $(ENGINE_SRC)

$(LIB_SAN): $(ENGINE_SRC) $(ENGINE_HDR) Makefile | $(BUILD)/.apt-base
	@mkdir -p $(@D)
	$(CC) $(ENGINE_CFLAGS) $(SAN_CFLAGS) -shared -o $@ $(ENGINE_SRC)

$(SEARCH): $(SEARCH_SRC) $(wildcard planner_service/search/*.h) Makefile | $(BUILD)/.apt-base
	@mkdir -p $(@D)
	$(CC) $(SEARCH_CFLAGS) -O2 -shared -o $@ $(SEARCH_SRC)

# ---------------------------------------------------------------- boards

HOST_BOARD := $(BUILD)/host/weft_host_board
HOST_SRC := $(wildcard samples/host/*.c module/src/update/*.c module/src/smp/*.c)
HOST_HDR := $(wildcard samples/host/*.h module/src/update/*.h)
# zcbor's C sources come with its Python package; their warnings are their authors'.
ZCBOR_DIR = $(shell $(VENV)/bin/python -c 'import importlib.util as u, os; print(os.path.dirname(u.find_spec("zcbor").origin))')
ZCBOR_OBJ := $(addprefix $(BUILD)/host/zcbor_,common.o decode.o encode.o)

host-board: $(HOST_BOARD)

$(ZCBOR_OBJ): $(VENV)/.installed | $(BUILD)/.apt-base
	@mkdir -p $(@D)
	$(CC) -std=c99 -O2 -w -I$(ZCBOR_DIR)/include -c -o $@ $(ZCBOR_DIR)/src/$(basename $(@F)).c

$(HOST_BOARD): $(HOST_SRC) $(HOST_HDR) $(ENGINE_SRC) $(ENGINE_HDR) $(ZCBOR_OBJ) Makefile | $(BUILD)/.apt-host
	@mkdir -p $(@D)
	$(CC) -std=c99 -Wall -Wextra -Wconversion -Werror -O2 -pthread -Imodule/include -Imodule/src \
	    -isystem $(ZCBOR_DIR)/include -o $@ $(HOST_SRC) $(ENGINE_SRC) $(ZCBOR_OBJ) -lmbedcrypto

baremetal: setup $(BUILD)/.apt-test
	$(VENV)/bin/python -m planner_service.profile.emulator build

# ---------------------------------------------------------------- what people run

demo: setup $(LIB) $(SEARCH) $(HOST_BOARD)
	$(VENV)/bin/python samples/demo/demo.py

lint: setup $(BUILD)/.apt-test
	timeout $(TEST_TIMEOUT) $(VENV)/bin/python -m pytest -q tests/test_lint.py

test: setup $(BUILD)/.apt-test engine $(HOST_BOARD)
	@timeout $(TEST_TIMEOUT) $(VENV)/bin/python -m pytest -n $(PYTEST_JOBS) --dist worksteal $(PYTEST_ARGS)

# Takes ten minutes of one core, most of it the engine's executions.
bench-planner: setup $(LIB) $(SEARCH)
	$(VENV)/bin/python -m planner_service.bench_planner

# Every pair of power cuts takes a few minutes; all cores are used.
bench-update: setup $(BUILD)/.apt-test engine $(HOST_BOARD)
	$(VENV)/bin/python -m tests.update.bench

# libFuzzer on verifier, execution, update core and SMP packets, so long each; findings stay in build/fuzz.
FUZZ_SECONDS ?= 60
.PHONY: fuzz
fuzz: setup $(BUILD)/.apt-test
	$(VENV)/bin/python -m tests.fuzz.libfuzzer --seconds $(FUZZ_SECONDS)

# Lines and branches of parser, verifier and update core that the tests reach; fails below the bar.
.PHONY: coverage
coverage: setup $(BUILD)/.apt-test
	$(VENV)/bin/python -m tests.coverage

# Needs a Zephyr tree in ZEPHYR_BASE or ~/zephyrproject/zephyr.
test-zephyr: setup engine
	WEFT_TEST_ZEPHYR=1 $(VENV)/bin/python -m pytest -s -v tests/test_zephyr.py tests/test_zephyr_update.py $(PYTEST_ARGS)

# Every board of the RIOT samples, with every RIOT tree of RIOT_TREES. The tables tell what was built and what ran.
RIOT_TREES ?= $(or $(RIOTBASE),$(wildcard $(HOME)/RIOT $(HOME)/RIOT-20*))
RIOT_TESTS := tests/test_riot.py tests/test_riot_update.py
.PHONY: test-riot bench-riot
test-riot: setup engine
	@test -n "$(RIOT_TREES)" || { echo "clone https://github.com/RIOT-OS/RIOT to ~/RIOT or set RIOTBASE"; exit 1; }
	rm -f $(BUILD)/riot/*/results.json
	@failed=0; for tree in $(RIOT_TREES); do \
	    RIOTBASE=$$tree WEFT_RIOT_BOARDS=all timeout $(TEST_TIMEOUT) $(VENV)/bin/python -m pytest $(RIOT_TESTS) \
	        $(PYTEST_ARGS) || failed=1; \
	done; $(VENV)/bin/python tests/test_riot.py; exit $$failed

# Two hundred kills of the process amid updates.
bench-riot: setup engine
	WEFT_RIOT_KILLS=200 timeout $(TEST_TIMEOUT) $(VENV)/bin/python -m pytest tests/test_riot_update.py -k killed $(PYTEST_ARGS)
	$(VENV)/bin/python tests/test_riot.py

# Five models by five schedules on five emulated cores: minutes.
.PHONY: bench-engine
bench-engine: setup $(BUILD)/.apt-test $(LIB) $(SEARCH)
	$(VENV)/bin/python tests/baremetal/bench.py

clean:
	rm -rf $(BUILD)

distclean: clean
	rm -rf $(VENV) *.egg-info
