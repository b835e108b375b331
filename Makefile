# `make demo` and `make test` are all a user needs; each installs a missing system package with apt when it may.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
export RUSTDOCFLAGS ?= -D warnings

.PHONY: kernels fake-cuda gpu-on-cpu demo test python check doc docs figures bench gpu install-system-packages real
.DEFAULT_GOAL := demo

demo: install-system-packages ## prune the small model by every method and compare perplexities
	cargo run --release -- demo

test: install-system-packages ## every test; ends with the names of what was skipped
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	cargo test --release 2>&1 | tee "$$log"; \
	skipped=$$(sed -n 's/^test \(.*[^ ]\) *\.\.\. ignored.*/  \1/p' "$$log"); \
	if [ -n "$$skipped" ]; then \
	    printf '\nskipped (texts: set DUOGPT_TEXTS; gpu: needs a CUDA device; *.cu: needs libnvrtc):\n%s\n' "$$skipped"; \
	else printf '\nnothing was skipped\n'; fi; \
	awk '/^test result:/ { passed += $$4; failed += $$6; ignored += $$8 } \
	    END { printf "%d passed, %d failed, %d skipped\n", passed, failed, ignored }' "$$log"

python: install-system-packages ## the Python package: lints, a wheel, its tests in a fresh virtual environment; needs PyPI
	scripts/python.sh

check: install-system-packages ## formatting, lints, documentation
	cargo fmt --check
	cargo fmt --check --manifest-path book/Cargo.toml
	cargo fmt --check --manifest-path python/Cargo.toml
	cargo clippy --release --all-targets -- -D warnings
	cargo doc --release --no-deps

doc: ## the documentation of the code
	cargo doc --no-deps --open

docs: ## the book: built into target/book, every link, anchor and path checked
	@echo "building the book with mdBook (the library; compiled into target/book-builder where it is not there yet)"
	cargo run --quiet --manifest-path book/Cargo.toml --target-dir target/book-builder

real: install-system-packages ## a published model of 135 million parameters: converted from GGUF, measured, pruned by every method, run
	cargo build --release
	scripts/real.sh

figures: install-system-packages ## the book's pictures, from new runs on the small model
	cargo build --release
	scripts/figures.sh
	cargo run --release --example figures -- target/figures docs/figures

bench: install-system-packages ## criterion benches; figures in benches/README.md
	cargo bench

kernels: install-system-packages ## what a changed kernel can break, without a GPU: a part of `make test`
	cargo test --release --no-fail-fast --test cuda --test cross_backend --test golden --test benches --test device_errors --test fake_cuda --test kernels_compile

fake-cuda: install-system-packages ## stand-ins for CUDA's libraries: LD_LIBRARY_PATH=target/fake-cuda target/release/duogpt prune --backend cuda ...
	tests/fake_cuda/build.sh

gpu-on-cpu: fake-cuda ## make gpu from beginning to end on those stand-ins, at small shapes; its times mean nothing
	PATH=$(CURDIR)/target/fake-cuda:$$PATH LD_LIBRARY_PATH=$(CURDIR)/target/fake-cuda:$$LD_LIBRARY_PATH \
	XDG_CACHE_HOME=$(CURDIR)/target/fake-cuda/cache DUOGPT_GPU_SIZES=small DUOGPT_RESULTS=$(CURDIR)/target/fake-cuda/results \
	scripts/gpu-check.sh score

gpu: install-system-packages ## on a machine with a CUDA device: every kernel against the reference there, then timed
	scripts/gpu-check.sh

install-system-packages:
	@if ! pkg-config --exists openblas 2>/dev/null || ! command -v g++ >/dev/null; then \
	    as_root=; \
	    if [ "$$(id -u)" != 0 ]; then as_root="sudo -n"; fi; \
	    if command -v apt-get >/dev/null && $$as_root true 2>/dev/null; then \
	        echo "installing libopenblas-dev, pkg-config and g++"; \
	        $$as_root apt-get update -qq && $$as_root apt-get install -y -qq libopenblas-dev pkg-config g++ >/dev/null; \
	    else \
	        echo "Please install OpenBLAS and g++ first, for instance: sudo apt-get install libopenblas-dev pkg-config g++" >&2; \
	        exit 1; \
	    fi; \
	fi
	@command -v cc >/dev/null || { echo "Please install a C compiler, for instance: sudo apt-get install gcc" >&2; exit 1; }
	@command -v cargo >/dev/null || { echo "Please install Rust 1.95 or newer: https://rustup.rs" >&2; exit 1; }
