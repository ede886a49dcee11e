# Everything a developer runs. `make` lists it. A fresh machine needs Rust (rustup), Go, make and a C compiler.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
.DEFAULT_GOAL := help

# Given to the program behind a target: make run ARGS='--help', make test ARGS=a_watch
ARGS ?=

TARGET := $(or $(CARGO_TARGET_DIR),target)
CARGO_DENY_VERSION := 0.20.2
CARGO_DENY := target/cargo-tools/$(CARGO_DENY_VERSION)/bin/cargo-deny

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' Makefile

.PHONY: run
run: ## Start a control plane on KubeBrain: two kube-apiservers, KubeGateway, controllers, a kubeconfig
	cargo run -p kubewharf -- up $(ARGS)

# The order matters: the Rust build, the build of the real programs and the tests each take all cores.
.PHONY: test
test: strace postgres fault-tools build tools ## Run all tests; ends with how many passed
	@status=0; \
	cargo test --workspace --no-fail-fast -- $(ARGS) 2>&1 | tee $(TARGET)/test.log || status=$$?; \
	awk '/^test result: / { passed += $$4; failed += $$6; skipped += $$8 } \
	  END { printf "\n%d passed, %d failed, %d skipped\n", passed, failed, skipped }' $(TARGET)/test.log; \
	exit $$status

.PHONY: test-long
test-long: strace postgres fault-tools build tools ## Run the tests that take too long for every change
	cargo test --workspace --no-fail-fast -- --ignored $(ARGS)

.PHONY: bench-brain
bench-brain: tools ## Measure KubeBrain and etcd side by side
	cargo build --release -p kubewharf
	cargo run --release -p kubewharf-benches --bin bench-brain -- $(ARGS)

.PHONY: bench-members
bench-members: postgres tools ## Measure KubeBrains that share a PostgreSQL beside an etcd cluster and kine
	cargo build --release -p kubewharf
	cargo run --release -p kubewharf-benches --bin bench-members -- $(ARGS)

.PHONY: bench-gateway
bench-gateway: tools ## Measure KubeGateway and HAProxy (the package haproxy) side by side
	cargo build --release -p kubewharf
	cargo run --release -p kubewharf-benches --bin bench-gateway -- $(ARGS)

.PHONY: bench-zoo
bench-zoo: tools ## Measure KubeZoo beside its kube-apiserver, and what tenants cost
	cargo build --release -p kubewharf
	cargo run --release -p kubewharf-benches --bin bench-zoo -- $(ARGS)

# All targets, so that the tests find this build done, features and all.
.PHONY: build
build: ## Compile the workspace, tests included
	cargo build --workspace --all-targets

.PHONY: tools
tools: build ## Build kube-apiserver, kubectl, etcd and Kubernetes' tests into target/tools, once
	$(TARGET)/debug/build-tools

.PHONY: verify
verify: verify-format verify-code verify-dependencies verify-documentation ## Check everything but the tests; changes nothing

.PHONY: verify-format
verify-format:
	cargo fmt --all --check
	@unformatted=$$(gofmt -l tests/go); if [ -n "$$unformatted" ]; then echo "gofmt: $$unformatted"; exit 1; fi

.PHONY: verify-code
verify-code:
	cargo clippy --workspace --all-targets -- -D warnings
	cargo run -q -p xtask -- codegen --check

.PHONY: verify-dependencies
verify-dependencies: $(CARGO_DENY)
	$(CARGO_DENY) check bans licenses sources

# The documentation is read by developers, private items and all, so links to those are right.
.PHONY: verify-documentation
verify-documentation:
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc --workspace --no-deps --document-private-items --quiet

.PHONY: fix
fix: ## Format, apply what clippy can mend, generate code again
	cargo run -q -p xtask -- codegen
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all
	gofmt -w tests/go

$(CARGO_DENY):
	cargo install cargo-deny --version $(CARGO_DENY_VERSION) --locked --no-default-features \
	  --root target/cargo-tools/$(CARGO_DENY_VERSION)

# A test of the engine reads the system calls of a process with it.
.PHONY: strace
strace:
	@command -v strace >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq strace; \
	else echo "strace is missing, which the engine's durability tests need: install the package strace"; exit 1; fi

# Tests of the PostgreSQL engine start servers of their own, so the package must not leave one running.
.PHONY: postgres
postgres:
	@{ command -v postgres || ls /usr/lib/postgresql/*/bin/postgres; } >/dev/null 2>&1 && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  mkdir -p /etc/postgresql-common && \
	  { test -e /etc/postgresql-common/createcluster.conf || \
	    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf; } && \
	  apt-get update -qq && apt-get install -y -qq -o Dpkg::Options::=--force-confold postgresql; \
	else echo "PostgreSQL is missing, which its engine's tests need: install the package postgresql"; exit 1; fi

# Tests cut networks with the one, and make clocks jump with the other.
.PHONY: fault-tools
fault-tools:
	@{ command -v ip && ls /usr/lib/*/faketime/libfaketimeMT.so.1; } >/dev/null 2>&1 && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends iproute2 libfaketime; \
	else echo "ip or libfaketime is missing, which tests with faults need: install the packages iproute2 and libfaketime"; exit 1; fi
