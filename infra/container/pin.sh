#!/usr/bin/env bash
# Pins the Dockerfile's base image by digest: the one that its tag names at the registry now. Then every build starts
# from the same bytes, until this is run again. Build, try and commit what it writes.
#   infra/container/pin.sh                                            # the image that the Dockerfile names
#   infra/container/pin.sh mirror.example.org/python:3.11-slim-bookworm
# It needs skopeo, which Debian, Fedora and Homebrew have; credentials are those of `skopeo login` or `docker login`.
set -euo pipefail
dockerfile=$(dirname "$0")/Dockerfile
command -v skopeo >/dev/null || { echo "pin: skopeo is needed: apt-get install skopeo" >&2; exit 2; }

named=$(sed -n 's/^ARG BASE=//p' "$dockerfile")
image=${1:-$named}
image=${image%@*}
# The digest of the index over all processors, which is the one of its bytes.
digest=sha256:$(skopeo inspect --raw "docker://$image" | sha256sum | cut -d ' ' -f 1)
sed -i "s|^ARG BASE=.*|ARG BASE=$image@$digest|" "$dockerfile"
echo "pin: $named -> $image@$digest"
