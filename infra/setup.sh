#!/usr/bin/env bash
# Sets up .venv in the repository's root on a fresh Debian machine: Python 3.11 or newer, and what it lacks.
#   infra/setup.sh            what running needs
#   infra/setup.sh dev        also what style, types and tests need
#   infra/setup.sh test       also Chromium and CLIP's vocabulary
set -euo pipefail
cd "$(dirname "$0")/.."

apt_install() {
    local sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: Python 3.11 or newer is needed; install it, or name it: make setup PYTHON=/path/to/python" >&2
    return 2
}

# A setting of pip's, from its environment or its files, with its values separated by blanks.
pip_setting() {
    .venv/bin/python -m pip config list | sed -n "s/^[^=]*\.$1='\(.*\)'\$/\1/p" | head -n 1 | sed 's/\\n/ /g' | xargs
}

# uv takes a fraction of pip's time, but does not read pip's settings. They are handed on, so that both ask the same
# indexes.
uv_install() {
    local links index extra cert
    links=$(pip_setting find-links) index=$(pip_setting index-url) extra=$(pip_setting extra-index-url) cert=$(pip_setting cert)
    env ${links:+UV_FIND_LINKS="${links// /,}"} ${index:+UV_DEFAULT_INDEX="$index"} ${extra:+UV_INDEX="$extra"} \
        ${cert:+SSL_CERT_FILE="$cert"} UV_INDEX_STRATEGY=unsafe-best-match UV_HTTP_TIMEOUT=180 \
        .venv/bin/uv pip install --quiet --python .venv/bin/python --constraint constraints.txt "$@"
}

pip_install() {
    .venv/bin/python -m pip install --quiet --constraint constraints.txt "$@"
}

# The same versions by either: constraints.txt pins every one. A range for torch would bring gigabytes of CUDA packages.
install() {
    if [ -x .venv/bin/uv ] || pip_install uv 2>/dev/null; then
        uv_install "$@" && return
        echo "setup: uv could not; pip does it"
    fi
    pip_install "$@"
}

modules="jobs.cli, jobs.debias, jobs.worker.worker, infra.local, ray.dashboard.agent, ray.dashboard.dashboard"
extras=local
[ -z "${1:-}" ] || extras=local,dev
stamp=.venv/.evenhand-ready
wanted=$(cat pyproject.toml constraints.txt | sha256sum)
ready=$(cat "$stamp" 2>/dev/null || true)
if [ "$ready" != "$wanted local,dev" ] && [ "$ready" != "$wanted $extras" ]; then
    python=$(find_python)
    echo "setup: virtual environment in .venv, with $("$python" --version)"
    if [ ! -x .venv/bin/python ]; then
        "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
        "$python" -m venv .venv
    fi
    install --editable ".[$extras]"
    # The modules that a job imports, a fifth of all, are compiled here. Where PYTHONDONTWRITEBYTECODE is set, as in many
    # images, each process would else compile them for itself: a worker then starts in 14 s in place of 6.
    env --unset PYTHONDONTWRITEBYTECODE TRANSFORMERS_VERBOSITY=error .venv/bin/python -c "import $modules"
    echo "$wanted $extras" > "$stamp"
fi
if [ "${1:-}" = test ] && ! compgen -G '.venv/wheels/open_clip_torch-*.whl' >/dev/null; then
    # For its one data file. Not installed: it needs torchvision, with which transformers prepares images in another way.
    echo "setup: CLIP's vocabulary, for the tests"
    .venv/bin/python -m pip download --quiet --no-deps --constraint constraints.txt --dest .venv/wheels open-clip-torch
fi
registry=.venv/registry/usr/bin/docker-registry
if [ "${1:-}" = test ] && ! { command -v chromium && command -v skopeo && [ -x $registry ]; } >/dev/null; then
    echo "setup: Chromium, for the tests of the report's page; skopeo and a registry, for those of the container's image"
    apt_install chromium skopeo
    # Unpacked, not installed: that would start it as a service, for all the network.
    (cd .venv && apt-get download -qq -o APT::Sandbox::User=root docker-registry && dpkg -x docker-registry_*.deb registry)
fi
