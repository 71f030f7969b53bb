# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The project's chores. `make test` is exactly what CI runs.

export PATH := $(CURDIR)/build/tools/bin:$(PATH)
SEEDS ?= 1000

.PHONY: help demo test build lint fmt doc install bench conformance sim

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: ## a client, what the device saw, the result: in a minute
	@scripts/install demo
	@scripts/demo

test: install build lint ## everything that CI runs; the last line counts the tests
	cargo test --workspace --doc --quiet
	cargo nextest run --workspace

install: ## what the tests need: Debian packages, Linux's selftests, a guest
	@scripts/install test

build:
	cargo build --workspace --all-targets

lint: ## format, clippy, documentation, licences, scripts
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --quiet
	cargo deny --log-level error check licenses bans sources
	shellcheck -x scripts/install scripts/selftests scripts/guest scripts/guest-init scripts/clean-root scripts/demo .ci/run

fmt: ## format the source
	cargo fmt

bench: ## each figure against a floor or a peer measured in the same run
	@scripts/install demo
	@cargo build --quiet --release -p vfuse -p vfuse-bench
	@cargo run --quiet --release -p vfuse-bench

conformance: ## how many lines of the fact sheets have a test
	@cargo run --quiet -p xtask -- conformance

sim: ## a lab from one seed at a time: make sim SEEDS=10000
	@cargo run --quiet --release -p vfuse-sim -- $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))
