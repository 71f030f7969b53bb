# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The project's chores. `make test` is exactly what CI runs.

export PATH := $(CURDIR)/build/tools/bin:$(PATH)
SEEDS ?= 1000
TARGET_DIR = $(or $(CARGO_TARGET_DIR),target)

.PHONY: help demo demo-aer demo-migration demo-vdpa test build lint fmt doc install bench conformance sim fuzz miri

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: ## a client, what the device saw, the result: in a minute
	@scripts/install demo
	@scripts/demo

demo-aer: ## a guest recovers from errors of its disk while it writes to it
	@scripts/install test
	@scripts/demo-aer

demo-migration: ## a guest moves between two QEMUs; its device's states drawn
	@scripts/install test
	@cargo build --quiet -p vfuse
	@cargo run --quiet -p vfuse-programs --example migration

demo-vdpa: ## what becomes of a vDPA device's mappings at a reset
	@scripts/demo-vdpa

test: install build lint ## everything that CI runs; the last line counts the tests
	cargo test --workspace --doc --quiet
	@rm -rf $(TARGET_DIR)/selftests target/nextest
	cargo nextest run --workspace; status=$$?; cargo run --quiet -p xtask -- selftests && exit $$status

install: ## what the tests need: Debian packages, Linux's selftests, a guest
	@scripts/install test

build:
	cargo build --workspace --all-targets

lint: ## format, clippy, documentation, licences, scripts
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --quiet
	cargo deny --log-level error check licenses bans sources
	shellcheck -x scripts/install scripts/selftests scripts/guest scripts/guest-init scripts/clean-root scripts/demo scripts/demo-aer scripts/demo-vdpa .ci/run

fmt: ## format the source
	cargo fmt

bench: ## each figure against a floor or a peer measured in the same run
	@scripts/install test
	@cargo build --quiet --release -p vfuse -p vfuse-bench
	@cargo build --quiet --release -p vfuse-programs --bins
	@cargo run --quiet --release -p vfuse-bench

conformance: ## how many lines of the fact sheets have a test
	@cargo run --quiet -p xtask -- conformance

sim: ## a lab from one seed at a time: make sim SEEDS=10000
	@cargo run --quiet --release -p vfuse-sim -- $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

TIME ?= 60
TARGET ?= $(notdir $(wildcard fuzz/corpus/*))
fuzz: ## libFuzzer, needs a nightly toolchain: make fuzz TIME=600 TARGET=nvme
	@command -v cargo-fuzz >/dev/null || cargo install --locked --quiet --root build/tools cargo-fuzz --version 0.13.2
	@set -e; for target in $(TARGET); do \
		mkdir -p fuzz/found/$$target; \
		cargo +nightly fuzz run --sanitizer none $$target fuzz/found/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(TIME) -timeout=20 -rss_limit_mb=2048; \
	done

# Fewer cases than natively, and of what builds a fabric only a little: an
# interpreted instruction takes a hundred times as long. Models of threads that
# loom or shuttle run are not for Miri.
miri: export MIRIFLAGS := -Zmiri-disable-isolation
miri: export PROPTEST_CASES := 2
miri: ## the core under Miri, needs a nightly toolchain with miri
	cargo +nightly miri test -p vfuse-uapi -p vfuse-device -p vfuse-iommu
	cargo +nightly miri test -p vfuse-pci -- address:: config::power config::status config::error
	cargo +nightly miri test -p vfuse-vfio --lib -- tests::args:: tests::map:: tests::unmap::
