#!/bin/sh
# Makes dist/portainer-executor-<revision>.<os>-<arch>.bundle.tar.gz: an executor
# with a static buildkitd, runc and rootlesskit next to it, for agents that have
# nothing installed. The executor finds them there (--engine auto or buildkitd).
# The same revision makes the same bytes, on any machine with the same compilers.
#   PLATFORM=linux/amd64  another needs a C compiler for it in CC
#   FORCE=1               also from a tree with uncommitted changes
# Prints the archive's name.
set -eu
cd "$(dirname "$0")/.."

revision=$(git rev-parse --short=12 HEAD)
if [ -n "$(git status --porcelain)" ]; then
	if [ "${FORCE:-}" != 1 ]; then
		echo "tools/bundle.sh: the tree has uncommitted changes, so no revision names it. Commit them, or set FORCE=1." >&2
		exit 1
	fi
	revision=$revision-dirty
fi
platform=${PLATFORM:-linux/$(go env GOHOSTARCH)}
GOOS=${platform%/*} GOARCH=${platform#*/}
export GOOS GOARCH

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
trap 'exit 1' INT TERM HUP
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$out/portainer-executor" ./executor
tools/build.sh "$out" >&2
mkdir -p dist
archive=dist/portainer-executor-$revision.$GOOS-$GOARCH.bundle.tar.gz
tar -C "$out" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - portainer-executor buildkitd runc rootlesskit | gzip -n -9 >"$archive.part"
mv "$archive.part" "$archive"
echo "$archive"
