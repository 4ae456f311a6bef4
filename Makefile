# demo      build the examples on an embedded cluster and check what was pushed
# test      everything, with the race detector
# test-docker  the engine's tests with Docker 29, which it builds: that takes a quarter
#           of an hour, and Debian's containerd and runc
# bench     benchmarks, and end-to-end ratios against docker
# soak      a thousand builds while something is always being killed; SOAK_BUILDS,
#           SOAK_AT_ONCE, SOAK_KILL_EVERY, SOAK_SEED and SOAK_LOG change it
# lint      gofmt, vet, staticcheck, golangci-lint, cross-compilation
# executor  dist/portainer-executor-<revision>.<os>-<arch>.tar.gz; with BUNDLE=1 one
#           that brings its engine
# clean     what the others left
.PHONY: demo test test-docker bench soak lint executor clean setup

GO ?= go
# What the tests of one package may take.
TEST_TIMEOUT ?= 25m

# Conversations recorded from a real Mesos, held with the embedded one. Apart, so
# that how many passed is to be seen.
PROBE = TestMesosprobe

# Random build contexts, by docker build and by us. Apart for the same reason, and
# for its settings: DIFF_FLAGS='-diff.cases 4000 -diff.seed 0'.
DIFF = TestSameAsDocker
DIFF_FLAGS ?=

# What takes longest begins first, so that the rest runs beside it.
LONGEST = ./test ./internal/engine

test: setup
	$(GO) vet ./...
	$(GO) test -race -timeout $(TEST_TIMEOUT) -skip '^($(PROBE)|$(DIFF))$$' $(LONGEST) ./...
	$(GO) test -race -timeout $(TEST_TIMEOUT) -run '^$(DIFF)$$' -v ./internal/buildctx $(DIFF_FLAGS)
	$(GO) test -race -timeout $(TEST_TIMEOUT) -run '^$(PROBE)$$' -v ./internal/testmesos

# Those that tell one builder of an older Docker from the other are left out.
NEWER_DOCKER = TestBuild$$|TestBuildWithoutContext|TestStepFails|TestFailureClasses|TestCancelledBuildLeavesNothing|TestGivenDaemonKeepsItsImages|TestBundlerFails|TestNoCacheFilter|TestSecrets|TestCredentials|TestAuthFails|TestCloseLeavesNothing|TestSweepAfterKill

test-docker: setup
	tools/build.sh .tools/docker29 dockerd
	PATH=$$PWD/.tools/docker29:$$PATH $(GO) test -count=1 -timeout $(TEST_TIMEOUT) -run '$(NEWER_DOCKER)' ./internal/engine

demo: setup
	$(GO) run ./scripts/demo

bench: setup
	$(GO) test -run '^$$' -bench . -benchmem -timeout 30m $$($(GO) list ./... | grep -v /test$$)
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 30m ./test

soak: setup
	$(GO) run ./test/soak

lint:
	scripts/lint

executor:
	$(if $(filter 1,$(BUNDLE)),tools/bundle.sh,scripts/executor)

setup:
	scripts/setup

clean:
	rm -rf dist
