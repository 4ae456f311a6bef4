#!/bin/sh
# Builds what an agent needs to build images with nothing installed on it: a
# static buildkitd and runc, and rootlesskit for executors that are not root, from
# the modules in go.mod next to this file.
#
#	tools/build.sh [DIR [PROGRAM…]]
#
# DIR is .tools/bin at the top of the repository and PROGRAM all three, unless said.
# GOOS and GOARCH choose the platform as for go build. runc is part C: it needs a
# C compiler (CC) and libseccomp's header and static library for that platform.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-$here/../.tools/bin}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- buildkitd runc rootlesskit
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
cd "$here"
# A -mod or -overlay meant for the main module has no place here.
unset GOFLAGS || true
export GOOS="${GOOS:-linux}" GOWORK=off

version() { go list -m -f '{{.Version}}' "$1"; }

for program; do
	# Into a new file first: somebody may be running the old one.
	new=$dir/$program.new.$$
	case $program in
	buildkitd)
		# Layers are compressed by pgzip, on all processors: its API is that of
		# compress/gzip, which uses one, for half of the time of a build. Its own
		# default is a lower level. The place of the changed source is noted in
		# the program, so it is always the same.
		source=$(go list -m -f '{{.Dir}}' github.com/moby/buildkit)
		rm -rf buildkit
		trap 'rm -rf "$here/buildkit"' EXIT
		cp -R "$source" buildkit
		chmod -R u+w buildkit
		gzip=util/compression/gzip.go
		sed -e 's|"compress/gzip"|gzip "github.com/klauspost/pgzip"|' -e 's|level := gzip.DefaultCompression|level := 6|' \
			"$source/$gzip" >"buildkit/$gzip"
		if [ "$(diff "$source/$gzip" "buildkit/$gzip" | grep -c '^>')" -ne 2 ]; then
			echo "tools/build.sh: BuildKit's $gzip is not what it was: look what chooses the compression now" >&2
			exit 1
		fi
		cp go.mod buildkit/portainer.mod
		cp go.sum buildkit/portainer.sum
		go mod edit -replace github.com/moby/buildkit=./buildkit buildkit/portainer.mod
		v=$(version github.com/moby/buildkit)
		CGO_ENABLED=0 go build -trimpath -modfile buildkit/portainer.mod -o "$new" \
			-ldflags "-s -w -X github.com/moby/buildkit/version.Version=$v" \
			github.com/moby/buildkit/cmd/buildkitd
		;;
	runc)
		# buildkitd gives every step a seccomp profile, and a runc that cannot
		# apply it refuses the step.
		if ! echo '#include <seccomp.h>' | ${CC:-cc} -E - >/dev/null 2>&1; then
			echo "tools/build.sh: runc needs libseccomp to build: install libseccomp-dev (Debian) and a C compiler" >&2
			exit 1
		fi
		v=$(version github.com/opencontainers/runc)
		CGO_ENABLED=1 go build -trimpath -o "$new" -tags 'seccomp netgo osusergo urfave_cli_no_docs' \
			-ldflags "-s -w -linkmode external -extldflags -static -X main.version=${v#v}" \
			github.com/opencontainers/runc
		;;
	rootlesskit)
		CGO_ENABLED=0 go build -trimpath -o "$new" -ldflags '-s -w' github.com/rootless-containers/rootlesskit/v2/cmd/rootlesskit
		;;
	dockerd)
		# A newer one than Debian's, for "make test-docker"; no part of the bundle.
		(
			cd dockerd
			CGO_ENABLED=0 go build -trimpath -o "$new" -tags 'netgo osusergo exclude_graphdriver_btrfs no_systemd' \
				-ldflags '-s -w -X github.com/moby/moby/v2/dockerversion.Version=29.0.0-dev' github.com/moby/moby/v2/cmd/dockerd
		)
		;;
	*)
		echo "tools/build.sh: unknown program $program: it must be buildkitd, runc, rootlesskit or dockerd" >&2
		exit 2
		;;
	esac
	mv "$new" "$dir/$program"
done
