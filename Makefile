# make demo   ask the real node about live video, on this machine's CPU; no ROS, GPU or account needed
# make drive  a simulated robot follows ten instructions in unseen rooms; a table, a picture, an animation
# make test   every test that this machine can run; DISTRO=jazzy: those of the node, on ROS 2 Jazzy and without torch
# make test-fast   the tests that take seconds: no ROS, no training, no compiling; under two minutes on two idle cores
# make test-native the C++ kernels against plain loops, on random models under sanitizers; two minutes on two idle cores
# make check  format, lint, spelling, types and import contracts
# make release   the sdist, this machine's wheel and the notes, each tried in a bare environment, in build/release
# make clean  forget everything that was built
# make bench-engines   measure the CPU engine beside llama.cpp, onnxruntime-genai, openvino-genai and transformers
# make train-tiny      train the embedded model from nothing into build/nvila-tiny, and examine it; go on after a stop
# make mutation   break the rules' code in one place at a time, and count how often a test notices; go on after a stop
# make bench-stream    measure a stream that is asked many questions, beside one that is read anew for each
#
# Needs python3 with venv and its headers, a C++ compiler and make; all else goes into .venv, .venv-jazzy or .venv-peers.

PYTHON ?= python3
DISTRO ?= kilted
VENV := .venv$(patsubst %,-%,$(filter-out kilted,$(DISTRO)))
BIN := $(VENV)/bin
PEERS := .venv-peers
NO_AMX := -mno-amx-tile -mno-amx-int8 -mno-amx-bf16
export NVILA_ROS_DISTRO := $(DISTRO)
TEST_EXTRAS := test-robot
ifeq ($(DISTRO), kilted)
TEST_EXTRAS := torch,test
endif
# What the interfaces are built from; the Python sources are used in place.
BUILT_FROM := setup.py pyproject.toml package.xml CMakeLists.txt $(wildcard cmake/* native/*.* msg/* srv/* action/*)

# .venv brings its own ROS 2: one that is sourced in this shell would be mixed with it.
unexport AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH PYTHONPATH RMW_IMPLEMENTATION
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE

# One thread in each: two cores serve both. Each takes half of the files, for their fixtures, and what the other has left
# over at the end. (By file, pytest-xdist 3.8 waits for ever once a process of its own has died.)
TWO_PROCESSES := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo drive test test-fast test-native check clean mutation bench-engines bench-stream release train-tiny

demo: $(VENV)/ready
	$(BIN)/nvila demo $(ARGS)

drive: $(VENV)/ready
	$(BIN)/nvila drive $(ARGS)

# Tests of the node come last; they run whatever the others found. Where no test fits ARGS, pytest ends with 5.
test: $(VENV)/ready-to-test
	@code=0; \
	$(if $(filter kilted,$(DISTRO)),$(TWO_PROCESSES) -m "not ros" $(ARGS) || [ $$? -eq 5 ] || code=1;) \
	$(TWO_PROCESSES) -m ros $(ARGS) || [ $$? -eq 5 ] || code=1; \
	exit $$code

test-fast: $(VENV)/ready-to-test
	$(TWO_PROCESSES) -m "not ros and not slow and not gpu" $(ARGS)

test-native: $(VENV)/ready-to-test-native
	$(BIN)/cmake -S native -B build/native -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DNVILA_WERROR=ON -DNVILA_NATIVE_TESTS=ON $(ARGS)
	$(BIN)/cmake --build build/native
	$(BIN)/ctest --test-dir build/native --output-on-failure --parallel 2

check: $(VENV)/ready-to-check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/mypy

# One process: its tests measure how long they take. ARGS names mutants, such as 'nvila_ros.video.buffer*'.
mutation: $(VENV)/ready-to-mutate
	$(BIN)/mutmut run --max-children 1 $(ARGS)
	$(BIN)/python -m benchmarks.mutation

bench-stream: $(VENV)/ready-to-test
	$(BIN)/python -m benchmarks.stream $(ARGS)

bench-engines: $(VENV)/ready-to-test $(PEERS)/ready
	$(BIN)/python -m benchmarks.engines $(ARGS)

train-tiny: $(VENV)/ready-to-test
	$(BIN)/nvila train-tiny --out build/nvila-tiny --work build/train-tiny $(ARGS)
	$(BIN)/nvila eval build/nvila-tiny

release: $(VENV)/bin/python
	$(BIN)/python .ci/release.py

clean:
	rm -rf .venv .venv-jazzy $(PEERS) build mutants *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import ensurepip' || { echo "python3 has no venv: sudo apt install python3-venv"; exit 1; }
	@command -v c++ > /dev/null || { echo "there is no C++ compiler: sudo apt install g++"; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig as s; open(os.path.join(s.get_path("include"), "Python.h"))' 2> /dev/null \
	  || { echo "python3 has no headers: sudo apt install python3-dev"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: $(VENV)/bin/python $(BUILT_FROM)
	@echo "Installing nvila_ros with ROS 2 and building its interfaces (the first time a minute or two)"
	$(BIN)/python -m pip install --quiet --editable '.[ros,http]'
	@touch $@

# nvila_ros is installed by now, so that pip adds only what the extras name.
$(VENV)/ready-to-test: $(VENV)/ready
	@echo "Installing torch and the test tools (the first time a minute or two)"
	$(BIN)/python -m pip install --quiet 'nvila_ros[$(TEST_EXTRAS)]'
	@touch $@

# Needs nothing of the package itself.
$(VENV)/ready-to-test-native: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet 'cmake>=3.22' ninja
	@touch $@

$(VENV)/ready-to-mutate: $(VENV)/ready-to-test
	@echo "Installing mutmut"
	$(BIN)/python -m pip install --quiet 'nvila_ros[mutation]'
	@touch $@

$(VENV)/ready-to-check: $(VENV)/ready
	@echo "Installing the lint tools"
	$(BIN)/python -m pip install --quiet 'nvila_ros[lint]'
	@touch $@

# Apart from .venv, whose packages those of the peers would replace. llama.cpp, compiled for this machine, dies of AMX under
# some hypervisors: it is compiled without.
$(PEERS)/ready: $(VENV)/bin/python benchmarks/peers/requirements.txt
	@echo "Installing the runtimes to compare with; llama.cpp is compiled (the first time ten minutes)"
	$(PYTHON) -m venv $(PEERS)
	$(if $(shell grep -m1 amx_tile /proc/cpuinfo),CXXFLAGS="$(NO_AMX)" CFLAGS="$(NO_AMX)") \
	  $(PEERS)/bin/python -m pip install --quiet -r benchmarks/peers/requirements.txt
	@touch $@
