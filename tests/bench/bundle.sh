#!/usr/bin/env bash
# Packs what a GPU machine lacks on which nothing can be installed: this repository's last commit, and the wheels
# that lack, unpacked. Such a machine has Python with the packages of `there`.
#
#   tests/bench/bundle.sh OUT.tar.xz              # for Python 3.12 on x86-64; PYTHON_VERSION=3.13 for another
#
# There, without a network:
#
#   tar -xf OUT.tar.xz && cd evenhand && . ./enter
#   python3 -m tests.bench.bench_gpu              # the benchmark
#   python3 -m tests.bench.gpu_job                # the whole job, through Ray, on the demo model
#   python3 -m tests.bench.gpu_labels             # what cheaper manners of drawing do to labels
set -euo pipefail
out=$(realpath -m "${1:?name the archive to write}")
cd "$(dirname "$0")/../.."
python=.venv/bin/python
[ -x "$python" ] || { echo "bundle: no .venv; run: make dev" >&2; exit 2; }
version=${PYTHON_VERSION:-3.12}
there="torch transformers accelerate scipy statsmodels pyarrow pillow"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work/evenhand/site" "$work/wheels"
git archive HEAD infra jobs manifests tests time_ops pyproject.toml | tar -x -C "$work/evenhand"

# All that the job needs beyond what is there, in the versions that run here. Pydantic may come with newer packages of
# what is there, and not with older ones.
wanted=$("$python" -m tests.bench.lacking --there "$there" --also "pydantic pydantic-core annotated-types typing-inspection")
platforms=$(for glibc in 39 35 34 31 28 27 24 17; do echo "--platform manylinux_2_${glibc}_x86_64"; done)
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
    $platforms --platform manylinux2014_x86_64 --platform manylinux1_x86_64 --dest "$work/wheels" $wanted
for wheel in "$work"/wheels/*.whl; do
    "$python" -m zipfile -e "$wheel" "$work/evenhand/site"
done
# A worker asks for the version of what it runs.
"$python" - "$work/evenhand/site" <<'PY'
import sys
from importlib.metadata import distribution
from pathlib import Path
own = distribution("evenhand")
folder = Path(sys.argv[1], f"evenhand-{own.version}.dist-info")
folder.mkdir()
(folder / "METADATA").write_text(own.read_text("METADATA") or own.read_text("PKG-INFO"), encoding="utf-8")
PY
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
# A dictionary as large as the whole: Ray's three programs are 40 MB each, and share most of their code.
tar -C "$work" -cf - evenhand | xz --threads=1 --x86 --lzma2=preset=9,dict=256MiB > "$out"
echo "bundle: $(du --bytes "$out" | cut -f1 | sed 's/.\{6\}$//') MB in $out"
