# Tapyard. `make demo` and `make test` do all the set-up on a fresh Debian machine with Go, as root.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
FUZZTIME ?= 4s
FLAGS ?=

.PHONY: help deps test-deps runtime-deps build deb check test test-long fuzz demo bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 11

# $(install) installs the packages in the shell's array `need`.
install = if (($${\#need[@]})); then echo "installing $${need[*]}"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${need[@]}" >/dev/null; fi

# $(libdpdk) succeeds where the tables of DPDK can be compiled against.
libdpdk = pkg-config --exists libdpdk 2>/dev/null

deps: ## install what build and demo need and the machine lacks (a C compiler for `raw`, iproute2)
	@need=(); command -v cc >/dev/null || need+=(gcc libc6-dev); command -v ip >/dev/null || need+=(iproute2); $(install)
	@command -v go >/dev/null || { echo "Go is missing; install it from go.dev or Debian's backports"; exit 1; }

# Programs that tests need are built once per version, each in a folder that appears when it is complete and
# that bench/nstest/cache.go knows by its name.
cache = $${XDG_CACHE_HOME:-$$HOME/.cache}/tapyard

# $(call build,FOLDER-VERSION,MODULE,PROGRAMS) builds the module's programs there; a module of our own because
# 'go install' also asks the proxy which versions there are, which some proxies don't tell.
build = dir=$(cache)/$(1); [[ -d $$dir ]] || { echo "building $$dir"; mkdir -p $(cache); tmp=$$(mktemp -d $$dir.XXXXXX); \
  mkdir $$tmp/bin; cd $$tmp; export CGO_ENABLED=0 GOFLAGS='-mod=mod -buildvcs=false' GOWORK=off; \
  go mod init tools 2>/dev/null; go mod edit -require=$(2)@$${dir\#\#*-}; \
  go build -trimpath -ldflags '-s -w' -o bin/ $(addprefix $(2)/,$(3)); rm -rf $$dir; mv -T bin $$dir; rm -rf $$tmp; }

# Open vSwitch runs as a child of the tests; the package's own service is not used.
test-deps: deps ## install what tests need besides: other VXLAN speakers, other decoders of packets, DPDK's tables
	@need=(); for p in ovs-vswitchd:openvswitch-switch tshark:tshark tcpdump:tcpdump ethtool:ethtool nft:nftables scapy3:python3-scapy vde_switch:vde2 nebula:nebula systemd-analyze:systemd ping:iputils-ping nsenter:util-linux; do \
	  command -v "$${p%:*}" >/dev/null || need+=("$${p#*:}"); done; \
	  $(libdpdk) || need+=(libdpdk-dev pkg-config); $(install)
	@$(call build,cni-plugins-v1.9.1,github.com/containernetworking/plugins,$(addprefix plugins/,main/bridge ipam/host-local ipam/static ipam/dhcp meta/portmap meta/bandwidth meta/tuning meta/sbr))

# Debian's own containerd, podman and their plugins are used, too. No service is started: daemons run as children of tests.
runtime-deps: test-deps ## install what `make test-long` needs besides: container runtimes
	@need=(); for p in containerd podman runc; do command -v $$p >/dev/null || need+=($$p); done; \
	  for p in busybox-static containernetworking-plugins; do dpkg -s $$p >/dev/null 2>&1 || need+=($$p); done; $(install)
	@$(call build,containerd-v2.3.6,github.com/containerd/containerd/v2,cmd/containerd cmd/containerd-shim-runc-v2)
	@$(call build,cri-tools-v1.36.0,sigs.k8s.io/cri-tools,cmd/crictl)

build: ## bin/tapyard and bin/tapyard-cni
	@mkdir -p bin
	go build -buildvcs=auto -trimpath -o bin/tapyard ./cmd/tapyard
	CGO_ENABLED=0 go build -buildvcs=auto -trimpath -ldflags '-s -w' -o bin/tapyard-cni ./cmd/tapyard-cni

deb: build ## bin/tapyard_*.deb: program, plugin, service, manual, shell completion
	cmd/tapyard/deb.sh

check: test-deps build ## build, vet, architecture and short tests: 3 minutes on two cores
	go vet ./...
	NETNS_REQUIRED=1 go test -short ./...

# Those that count what a machine does that has nothing else to do have it for themselves.
alone = ./bench ./cmd/tapyard ./switch/attach

test: test-deps build ## everything but test-long, as root: all tests, then the short ones with the race detector
	go vet ./...
	NETNS_REQUIRED=1 go test -count=1 -p 1 -timeout 8m $(alone)
	NETNS_REQUIRED=1 go test -count=1 -timeout 8m $$(go list ./... | grep -vxF "$$(go list $(alone))")
	NETNS_REQUIRED=1 go test -count=1 -short -race -timeout 8m ./...

# The tests are those that look at TAPYARD_LONG, and nothing else.
test-long: runtime-deps build ## what takes longer, after `make test`: a fuzz of every parser; containers of containerd and podman; an agent killed 100 times under 50 pods that talk; 20 restarts, kills and upgrades by systemd; each failure and kill inside ADD and DEL with each way to clear up
	@$(MAKE) --no-print-directory fuzz FUZZTIME=10s
	TAPYARD_LONG=1 NETNS_REQUIRED=1 go test -count=1 -p 1 -timeout 30m -run 'TestRuntime|TestKillsKeepPods|TestServiceRestartsUnnoticed' ./cmd/tapyard
	TAPYARD_LONG=1 NETNS_REQUIRED=1 go test -count=1 -timeout 10m -run AtEachStep ./switch/attach

# At the end of its time the go command sometimes takes its own deadline for a failure ("context deadline
# exceeded", golang/go#75804, mended in Go 1.27). A real failure writes the input that caused it, so without
# one that message is no finding.
fuzz: ## each fuzz target for FUZZTIME (4s)
	@log=$$(mktemp); trap 'rm -f '$$log EXIT; \
	for p in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "fuzz $$p $$f $(FUZZTIME)"; \
	    go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p >$$log 2>&1 && continue; \
	    if grep -q '^ *context deadline exceeded$$' $$log && ! grep -q 'Failing input' $$log; then continue; fi; \
	    cat $$log; exit 1; \
	  done; done

demo: deps build ## three nodes on this machine, their pods' connectivity, speed and ledger, live; FLAGS="--underlay6 --workers 2"
	bin/tapyard demo $(FLAGS)

bench: deps build ## everything beside other switches, 15 minutes; the forwarding table beside bart and DPDK, 5 more
	@need=(); for p in ovs-vswitchd:openvswitch-switch vde_switch:vde2 nebula:nebula; do \
	  command -v "$${p%:*}" >/dev/null || need+=("$${p#*:}"); done; \
	  $(libdpdk) || need+=(libdpdk-dev pkg-config); ($(install)) || echo "could not install $${need[*]}: going on without"
	bin/tapyard bench compare --report bench.html $(FLAGS)
	bin/tapyard bench fib

clean: ## remove bin/
	rm -rf bin
