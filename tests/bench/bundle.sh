#!/usr/bin/env bash
# Packs what a GPU machine lacks on which nothing can be installed: this repository's last commit, and the wheels of
# `lacking`, unpacked. Such a machine has Python with torch, transformers, accelerate, scipy, statsmodels and pyarrow.
#
#   tests/bench/bundle.sh OUT.tar.xz              # for Python 3.12 on x86-64; PYTHON_VERSION=3.13 for another
#
# There, without a network:
#
#   tar -xf OUT.tar.xz && cd evenhand && . ./enter
#   python3 -m tests.bench.bench_gpu              # the benchmark
#   python3 -m tests.bench.gpu_job                # the whole job, through Ray, on the demo model
set -euo pipefail
out=$(realpath -m "${1:?name the archive to write}")
cd "$(dirname "$0")/../.."
python=.venv/bin/python
[ -x "$python" ] || { echo "bundle: no .venv; run: make dev" >&2; exit 2; }
version=${PYTHON_VERSION:-3.12}
lacking="ray diffusers pydantic pydantic-core pydantic-settings python-dotenv annotated-types typing-inspection boto3
botocore s3transfer jmespath tenacity inflect more-itertools typeguard importlib-metadata zipp jsonschema
jsonschema-specifications referencing rpds-py"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work/evenhand/site" "$work/wheels"
git archive HEAD infra jobs manifests tests time_ops pyproject.toml | tar -x -C "$work/evenhand"

# The versions that run here, pinned or not.
wanted=$("$python" - $lacking <<'PY'
import sys
from importlib.metadata import version
print(*(f"{name}=={version(name)}" for name in sys.argv[1:]))
PY
)
platforms=$(for glibc in 39 35 34 31 28 27 24 17; do echo "--platform manylinux_2_${glibc}_x86_64"; done)
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
    $platforms --platform manylinux2014_x86_64 --platform manylinux1_x86_64 --dest "$work/wheels" $wanted
for wheel in "$work"/wheels/*.whl; do
    "$python" -m zipfile -e "$wheel" "$work/evenhand/site"
done
# A wheel says which of its files are programs in bits that zipfile leaves out.
chmod +x "$work"/evenhand/site/ray/core/src/ray/*/* "$work"/evenhand/site/*.data/scripts/* 2>/dev/null || true

# Java's classes, the dashboard's pages, libraries upon Ray that no job uses, and services that no store is reached by.
(
    cd "$work/evenhand/site"
    rm -rf ray/jars ray/dashboard/client ray/rllib ray/serve ray/llm ray/tune ray/train/v2 ray/cpp
    find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name 's3*' ! -name 'sts' ! -name 'sso*' -exec rm -rf {} +
    find . -name '*.map' -delete
)
cat > "$work/evenhand/enter" <<'SH'
# To be sourced: the folder's own packages first, and nothing is fetched.
export PYTHONPATH="$PWD/site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled
SH
tar -C "$work" -cf - evenhand | xz -6 > "$out"
echo "bundle: $(du -m "$out" | cut -f1) MB in $out"
