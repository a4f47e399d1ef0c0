# The entry points. `make help` lists them. Build output and downloads live in a cache folder outside the checkout.
SHELL := bash
# As in the image of the worker: idle OpenMP threads spin for a moment only, then sleep.
export GOMP_SPINCOUNT := 100000
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CACHE := $(or $(IMAGEGEN_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/imagegen)
S := deploy/scripts

# LIBTORCH=2.11 builds against libtorch 2.11 instead of the pinned 2.5.1, from a tree of links with its own lock file.
# A variable of that name in the environment usually is a folder, for tch: only a version counts.
ifeq ($(origin LIBTORCH) $(filter 2.5.1 2.11,$(LIBTORCH)),command line )
  $(error LIBTORCH: expected 2.5.1 or 2.11, found "$(LIBTORCH)")
endif
override LIBTORCH := $(or $(filter 2.5.1 2.11,$(LIBTORCH)),2.5.1)
ifeq ($(LIBTORCH),2.5.1)
  TREE := .
  TARGET := $(CACHE)/target
else
  TREE := $(CACHE)/tree-$(LIBTORCH)
  TARGET := $(CACHE)/target-$(LIBTORCH)
endif
CARGO = cd $(TREE) && env $$($(CURDIR)/$(S)/libtorch.sh $(LIBTORCH)) CARGO_TARGET_DIR=$(TARGET) cargo
# Crates that need no libtorch build and test in seconds without it.
PLAIN := -p fake-nvml -p imagegen-core -p imagegen-proto -p imagegen-telemetry -p imagegen-operator -p imagegen
TORCH := -p imagegen-model -p imagegen-worker

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

# --- Using it
.PHONY: demo demo-down
demo: ## Kubernetes, operator, a worker and two pictures, in one command (root, or KUBECONFIG and IMAGES)
	@$(S)/demo.sh up
demo-down: ## Remove what the demo made
	@$(S)/demo.sh down

# --- Building
.PHONY: setup worker operator cli programs images libtorch-cuda tree
setup: ## Install what building, the test cluster and the checks need
	@$(S)/setup.sh build cluster lint alerts
tree:
	@[ $(LIBTORCH) = 2.5.1 ] || $(S)/tree.sh $(LIBTORCH)
worker: tree ## Release build of the worker (LIBTORCH=2.11 for the newer libtorch)
	@$(S)/setup.sh build
	@# With the features that the three programs together select, so that `programs` has nothing to compile again.
	$(CARGO) build --locked --release -p imagegen-worker -p imagegen-operator -p imagegen --bin imagegen-worker
operator cli: programs
programs: tree ## Release build of worker, operator and client
	@$(S)/setup.sh build
	$(CARGO) build --locked --release -p imagegen-worker -p imagegen-operator -p imagegen
images: programs ## Container images, as archives in the cache folder
	@$(S)/setup.sh cluster
	@$(S)/build-images.sh
libtorch-cuda: ## The CUDA libraries beside libtorch, for a machine with a GPU
	@$(S)/libtorch.sh $(LIBTORCH) --cuda

# --- Generated files
.PHONY: generate fixtures
generate: ## Rewrite the CRD, the chart's copy of it and the plain manifests
	@$(CARGO) run --quiet --locked -p imagegen-operator -- crd > $(CURDIR)/deploy/crd.yaml.new && mv $(CURDIR)/deploy/crd.yaml.new $(CURDIR)/deploy/crd.yaml
	@$(S)/generate.sh
fixtures: ## Remake the float fixtures with the Python reference (they differ between CPUs in the last bits)
	@tests/reference/python.sh tests/reference/make_fixtures.py

.PHONY: lock-2.11
lock-2.11: ## Refresh Cargo-2.11.lock after Cargo.lock changed
	@cp Cargo.lock Cargo-2.11.lock && $(S)/tree.sh 2.11 && cd $(CACHE)/tree-2.11 && cargo update -p tch --precise 0.24.0

# --- Checking
.PHONY: lint test test-rust test-plain test-model test-chart test-cluster test-tools test-2.11
lint: ## rustfmt, clippy, docs, licences, shell scripts
	cargo fmt --all --check
	$(CARGO) clippy --locked --all-targets $(PLAIN) $(TORCH) -- -D warnings
	$(CARGO) clippy --locked --all-targets -p imagegen-worker --no-default-features -- -D warnings
	$(CARGO) doc --quiet --locked --no-deps $(PLAIN) $(TORCH)
	@$(S)/tree.sh 2.11 && cd $(CACHE)/tree-2.11 && cargo metadata --locked --format-version 1 >/dev/null || { echo "error: Cargo-2.11.lock is behind Cargo.lock; run make lock-2.11 and commit the result" >&2; exit 1; }
	$(CACHE)/lint-venv/bin/shellcheck -x -P SCRIPTDIR $(S)/*.sh .ci/run $(wildcard tests/*/*.sh)
	$(CARGO) deny --locked --log-level error check bans licenses sources
	gofmt -l tests/cluster | (! grep .)
lint: export RUSTDOCFLAGS := -D warnings
lint: export PATH := $(CACHE)/cargo-tools/bin:$(PATH)
test: test-rust test-chart test-cluster ## Every test there is
test-rust: test-tools tree ## Every Rust test, in one build
	@$(S)/setup.sh build
	$(CARGO) test --locked $(PLAIN) $(TORCH)
test-tools: ## Build what the tests of the operator and the cluster need (Kubernetes in one binary, Helm, ...)
	@$(S)/setup.sh cluster alerts && $(S)/test-tools.sh
test-plain: test-tools ## The Rust tests that need no libtorch
	$(CARGO) test --locked $(PLAIN)
test-model: tree ## Model and worker: parity with the reference, the server, pictures of the demo model
	@$(S)/setup.sh build alerts
	$(CARGO) test --locked $(TORCH)
test-chart: ## The Helm chart, the manifests and the alerts, without a cluster
	@$(S)/setup.sh cluster alerts && $(S)/test-chart.sh
test-cluster: images test-tools ## The product's own images on a real single-node Kubernetes (root)
	cd tests/cluster && CGO_ENABLED=0 go test -trimpath -count=1 -timeout 30m ./...
test-2.11: ## Model and worker tests against libtorch 2.11
	@$(MAKE) --no-print-directory test-model LIBTORCH=2.11

# --- Measuring
.PHONY: bench-cpu bench-gpu bench-start bench-operator bench-scaling
bench-cpu: ## Seconds an image on the CPU against the diffusers pipeline, as a ratio from one run
	$(CARGO) build --locked --release -p imagegen-model --example bench_cpu
	@tests/reference/python.sh tests/reference/compare_cpu.py $(TARGET)/release/examples/bench_cpu
bench-gpu: tree ## Milliseconds an image at full size on random weights, on a GPU (LIBTORCH=2.11; PEER=... adds the peer's script)
	@$(S)/libtorch.sh $(LIBTORCH) --cuda >/dev/null
	$(CARGO) build --locked --release -p imagegen-model --example bench_gpu
	@tests/reference/bench_gpu.sh $(TARGET)/release/examples/bench_gpu $(PEER)
bench-start: worker ## Seconds from the start of a worker to ready, and its memory
	python3 tests/reference/start_to_ready.py $(TARGET)/release/imagegen-worker
bench-operator: test-tools ## Reconcile latency and API calls for 200 ImageGens
	$(CARGO) bench --locked -p imagegen-operator --bench reconcile
bench-scaling: export IMAGEGEN_BENCH_OUT := $(CACHE)/bench-scaling
bench-scaling: ## Compare autoscalers on simulated traffic; table, CSV and a plot in the cache folder
	@mkdir -p $(CACHE)/bench-scaling
	$(CARGO) bench --locked -p imagegen-operator --bench scaling | tee $(CACHE)/bench-scaling/table.md
	@[ -x $(CACHE)/plot-venv/bin/python ] || { python3 -m venv $(CACHE)/plot-venv && $(CACHE)/plot-venv/bin/pip install --quiet --requirement tests/simulator/requirements.txt; }
	@$(CACHE)/plot-venv/bin/python tests/simulator/plot.py $(CACHE)/bench-scaling && echo "$(CACHE)/bench-scaling/scaling.png"
