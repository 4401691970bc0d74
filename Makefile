# vhbad: a Linux block device served over NBD from a virtual host bus adapter.
# `make` lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
PACKAGES := $(shell sed -e 's/\#.*//' deploy/ci/packages.txt)

# Where `make run` listens, and what it serves.
LISTEN ?= tcp://127.0.0.1:10809
DISK   ?= disk0=memory:1GiB

# Tools are built from internal/tools/go.mod, once for each version of that file and of Go.
TOOLS_KEY := $(shell { cat internal/tools/go.mod; $(GO) env GOVERSION GOOS GOARCH; } | sha256sum | cut -c1-16)
TOOLS     := .cache/bin/$(TOOLS_KEY)
TOOL_BUILD = $(GO) build -modfile=internal/tools/go.mod -o $@

# nfpm has a module of its own, internal/package/go.mod: its needs are many, and not the linters'.
NFPM_KEY := $(shell { cat internal/package/go.mod; $(GO) env GOVERSION GOOS GOARCH; } | sha256sum | cut -c1-16)
NFPM     := .cache/bin/$(NFPM_KEY)/nfpm

FUZZTIME ?= 30s
SOAKTIME ?= 5m
COUNT    ?= 10
ROUNDS   ?= 5
ROWS     ?= .
REF      ?=
PKG      ?= ./miniport
BENCH    ?= .

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the static binary bin/vhbad
	CGO_ENABLED=0 $(GO) build -trimpath -pgo deploy/vhbad.pgo -ldflags '-s -w -X main.version=$(VERSION)' -o bin/vhbad ./cmd/vhbad

.PHONY: run
run: build ## build and serve a 1 GiB memory disk (LISTEN=, DISK= to change); prints how to attach it
	@exec bin/vhbad serve --listen '$(LISTEN)' --disk '$(DISK)'

.PHONY: deps
deps: ## install the Debian packages that the tests need (root), or say which
	@missing=; for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${db:Status-Status}' "$$p" 2>/dev/null | grep -qx installed || missing="$$missing $$p"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" -eq 0 ]; then \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get update -q; \
	  apt-get install -y -q --no-install-recommends $$missing; \
	else \
	  echo "missing packages; install them with:" >&2; \
	  echo "  sudo apt-get install --no-install-recommends$$missing" >&2; \
	  exit 1; \
	fi

# The rungs run from cheap to dear, one after the other, so that the first failure is the simplest. Fuzz targets run by
# number: by time, Go now and then reports the end of the time as a failure.
.PHONY: test
test: ## everything: Debian packages, unit, race, interop, real kernel, a little fuzzing, our packages (15 minutes on two cores)
	@$(MAKE) deps
	@$(MAKE) unit
	@$(MAKE) race
	@$(MAKE) interop
	@$(MAKE) kernel
	@$(MAKE) fuzz FUZZTIME=1000x
	@$(MAKE) package

.PHONY: unit
unit: ## unit tests, the lock order of them all, and the orders of steps; needs nothing but Go
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	echo '$(GO) test -timeout 5m ./...'; VHBAD_LOCK_ORDER=$$folder $(GO) test -timeout 5m ./...; \
	$(GO) run ./internal/lockorder/merge "$$folder"
	$(GO) test -tags interleave -timeout 2m -run Interleave ./port ./hba
	$(GO) -C internal/bench test ./...

.PHONY: race
race: ## unit tests under the race detector; needs a C compiler
	@# By default each process sleeps for a second before it exits: the tests start hundreds of commands.
	GORACE=atexit_sleep_ms=50 $(GO) test -race -timeout 8m ./...

.PHONY: interop
interop: ## peers on this host and bad input; needs the packages of `make deps`
	$(GO) test -tags interop -count=1 -timeout 10m ./cmd/vhbad/e2e/...

.PHONY: kernel
kernel: ## /dev/nbd0 in a guest kernel (User-Mode Linux); needs the packages of `make deps`
	$(GO) test -tags kernel -count=1 -timeout 20m -parallel 2 ./cmd/vhbad/e2e/...

# A version that is a commit's name is none for a package manager.
PACKAGE_VERSION = $(shell echo '$(VERSION)' | sed -E -e 's/^v([0-9]+\.)/\1/' -e '/^[0-9]+\./!s/^/0.0.0+git./' -e 's/-/./g')
# The same packages from the same commit.
PACKAGE_TIME   ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

.PHONY: package
package: ## deb and rpm in dist/, and checks of all that is in deploy/; needs the packages of `make deps`
package: build $(NFPM)
	@rm -rf dist && mkdir -p dist/stage/man dist/stage/completions
	@cp bin/vhbad dist/stage/vhbad
	$(GO) run -tags manual -ldflags '-X main.version=$(VERSION)' ./cmd/vhbad manual dist/stage/man
	@gzip -9n dist/stage/man/*.1
	@bin/vhbad completion bash > dist/stage/completions/vhbad.bash
	@bin/vhbad completion zsh > dist/stage/completions/_vhbad
	@bin/vhbad completion fish > dist/stage/completions/vhbad.fish
	@for kind in deb rpm; do \
	  VERSION='$(PACKAGE_VERSION)' GOARCH="$$($(GO) env GOARCH)" SOURCE_DATE_EPOCH='$(PACKAGE_TIME)' $(NFPM) package -f deploy/package/nfpm.yaml -p $$kind -t dist/; \
	done
	@cd dist && sha256sum *.deb *.rpm > SHA256SUMS
	VHBAD_DIST=$(CURDIR)/dist $(GO) test -tags ship -count=1 -timeout 15m ./deploy/ship

# GOVULNDB is the database to ask.
GOVULNDB ?= https://vuln.go.dev

.PHONY: vuln
vuln: ## known vulnerabilities in what we use, by govulncheck and the database GOVULNDB=; needs the network
vuln: .cache/bin/$(NFPM_KEY)/govulncheck
	.cache/bin/$(NFPM_KEY)/govulncheck -db '$(GOVULNDB)' ./...

.PHONY: golden
golden: ## rewrite the golden transcripts; read the diff
	@for p in $$(grep -rl --include='*_test.go' 'cockroachdb/datadriven' . | xargs -r dirname | sort -u); do \
	  $(GO) test -count=1 "$$p" -args -rewrite; \
	done
	@git --no-pager diff --stat

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME
	@grep -rHoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | sed -e 's/:func / /' | sort | \
	while read -r file target; do \
	  echo "== $$file $$target"; \
	  $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$(dirname "$$file")" </dev/null; \
	done

.PHONY: soak
soak: ## the id race with ten million requests; more scripts of the queues; more orders of steps; 50 power cuts for each load; then unit tests under the race detector, over and over for SOAKTIME
	VHBAD_SOAK=1 $(GO) test -count=1 -timeout 10m -run TestA12 ./port ./port/porttest/mutants
	VHBAD_SOAK=1 $(GO) test -count=1 -timeout 20m -run TestLinearizable ./cmd/vhbad/internal/road
	$(GO) test -count=1 -timeout 20m -run TestModel_Flow ./port -rapid.checks=20000
	VHBAD_INTERLEAVE_PREEMPTIONS=1 VHBAD_INTERLEAVE_SEEDS=100000 $(GO) test -tags interleave -count=1 -timeout 30m -run TestInterleave_ ./port ./hba
	$(GO) test -tags kernel -count=1 -timeout 60m -parallel 2 -run 'TestKernel/crash/' ./cmd/vhbad/e2e -crashes 50
	@end=$$(( SECONDS + $$(echo '$(SOAKTIME)' | sed -e 's/h/*3600/' -e 's/m/*60/' -e 's/s//') )); \
	while [ $$SECONDS -lt $$end ]; do $(GO) test -race -count=1 -shuffle=on -timeout 8m ./...; done

.PHONY: bench
bench: build ## vhbad beside other servers, ROUNDS= rounds of rows ROWS=, into docs/benchmarks.md (half an hour for all, 3 minutes for ROWS='^guest-')
	@$(MAKE) deps PACKAGES='$(shell sed -e 's/\#.*//' deploy/ci/packages.txt deploy/ci/packages-bench.txt)'
	$(GO) -C internal/bench build -o ../../.cache/bin/bench .
	.cache/bin/bench -vhbad bin/vhbad -rounds $(ROUNDS) -rows '$(ROWS)' -doc docs/benchmarks.md

.PHONY: compare
compare: ## the NBD specification, rule by rule: vhbad beside nbdkit, qemu-nbd and nbd-server, into docs/protocol-support.md
	@$(MAKE) deps PACKAGES='$(PACKAGES) nbd-server openssl'
	nbd/conformance/compare.sh

# `make build` uses it. As cmd/vhbad/default.pgo, go build would as well, but then every package is two, for go list and for whoever builds.
.PHONY: pgo
pgo: ## take deploy/vhbad.pgo anew: the processor time of a daemon under the loads of `make bench` (5 minutes)
	@mkdir -p .cache/pgo && rm -f .cache/pgo/*.pprof
	CGO_ENABLED=0 $(GO) build -trimpath -pgo off -tags profile -o .cache/pgo/vhbad ./cmd/vhbad
	$(GO) -C internal/bench build -o ../../.cache/bin/bench .
	VHBAD_PROFILE_DIR=$(CURDIR)/.cache/pgo .cache/bin/bench -vhbad .cache/pgo/vhbad -rounds 3 -alone -rows '^(read|write|file)-'
	$(GO) tool pprof -proto .cache/pgo/*.pprof > .cache/pgo/all
	@# Slashes for the folder that the program lay in, which is this machine's: as many, as the length stands before it.
	folder=$$(realpath .cache/pgo)/ && gunzip < .cache/pgo/all | LC_ALL=C sed -e "s|$$folder|$${folder//?/\/}|g" | gzip -9n > deploy/vhbad.pgo

.PHONY: bench-go
bench-go: ## Go benchmarks of every stage, COUNT times, into .cache/bench.txt, and their summary
bench-go: $(TOOLS)/benchstat
	@mkdir -p .cache
	$(GO) test -run '^$$' -bench . -benchmem -count $(COUNT) ./... | tee .cache/bench.txt
	$(TOOLS)/benchstat .cache/bench.txt

# Both trees take turns, so that a machine that changes its mind changes it for both.
.PHONY: bench-compare
bench-compare: ## Go benchmarks BENCH= of package PKG= at commit REF= and here, in interleaved runs
bench-compare: $(TOOLS)/benchstat
	@test -n '$(REF)' || { echo "which commit to compare with? make bench-compare REF=HEAD~1 [PKG=./miniport] [BENCH=RoundTrip]" >&2; exit 1; }
	@rm -rf .cache/compare && mkdir -p .cache/compare && git worktree prune
	git worktree add --detach .cache/compare/tree '$(REF)'
	@for pkg in $(PKG); do \
	  name=$$(echo "$$pkg" | tr -c 'a-z0-9\n' _); \
	  (cd .cache/compare/tree && $(GO) test -c -o ../old$$name.test "$$pkg"); \
	  $(GO) test -c -o .cache/compare/new$$name.test "$$pkg"; \
	  for i in $$(seq $(COUNT)); do \
	    for side in old new; do \
	      (cd "$$pkg" && $(CURDIR)/.cache/compare/$$side$$name.test -test.run '^$$' -test.bench '$(BENCH)' -test.benchmem) >> .cache/compare/$$side.txt; \
	    done; \
	  done; \
	done
	git worktree remove --force .cache/compare/tree
	$(TOOLS)/benchstat .cache/compare/old.txt .cache/compare/new.txt

.PHONY: lint
lint: ## form, vet, golangci-lint, tidy module files, lock annotations
lint: $(TOOLS)/gofumpt $(TOOLS)/golangci-lint $(TOOLS)/checklocks
	@out=$$($(TOOLS)/gofumpt -l .); if [ -n "$$out" ]; then echo "not in form; run make fmt:" >&2; echo "$$out" >&2; exit 1; fi
	$(GO) mod tidy -diff
	cd internal/tools && $(GO) mod tidy -diff
	cd internal/package && $(GO) mod tidy -diff
	cd internal/bench && $(GO) mod tidy -diff && $(GO) vet ./... && ../../$(TOOLS)/golangci-lint run --allow-serial-runners ./...
	$(GO) vet -tags 'interop kernel interleave ship manual profile' ./...
	$(GO) vet -vettool=$(CURDIR)/$(TOOLS)/checklocks -inferred=false ./...
	$(TOOLS)/golangci-lint run --allow-serial-runners ./...

.PHONY: fmt
fmt: ## put all Go files in form
fmt: $(TOOLS)/gofumpt
	$(TOOLS)/gofumpt -w .

.PHONY: clean
clean: ## remove what make built
	rm -rf bin dist .cache

$(TOOLS)/golangci-lint:
	@mkdir -p $(@D)
	$(TOOL_BUILD) github.com/golangci/golangci-lint/v2/cmd/golangci-lint

$(TOOLS)/gofumpt:
	@mkdir -p $(@D)
	$(TOOL_BUILD) mvdan.cc/gofumpt

$(TOOLS)/checklocks:
	@mkdir -p $(@D)
	$(TOOL_BUILD) gvisor.dev/gvisor/tools/checklocks/cmd/checklocks

$(TOOLS)/benchstat:
	@mkdir -p $(@D)
	$(TOOL_BUILD) golang.org/x/perf/cmd/benchstat

$(NFPM):
	@mkdir -p $(@D)
	CGO_ENABLED=0 $(GO) -C internal/package build -trimpath -o $(CURDIR)/$@ github.com/goreleaser/nfpm/v2/cmd/nfpm

.cache/bin/$(NFPM_KEY)/govulncheck:
	@mkdir -p $(@D)
	$(GO) -C internal/package build -o $(CURDIR)/$@ golang.org/x/vuln/cmd/govulncheck
