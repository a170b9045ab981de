#!/usr/bin/env bash
# Tests and benchmarks that need a GPU: this checkout, a Python that has torch, and, where that lacks something, wheels
# in .carry/wheels (benchmarks/carry.sh fetches them). The figures go to $OUT, or to build/gpu.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if ! $python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "make gpu needs a GPU that $python's torch can use" >&2
    exit 2
fi
out=${OUT:-build/gpu}
site=build/gpu-site
mkdir -p "$out" "$site"
export PYTHONPATH=$PWD:$PWD/$site PYTHONUNBUFFERED=1
if [ -d .carry/wheels ]; then
    $python -m pip install --quiet --no-index --find-links .carry/wheels --no-deps --upgrade --target "$site" \
        pydantic pydantic-core annotated-types typing-inspection simplejpeg faiss-cpu psutil
fi
$python -m dcdist doctor --device cuda | tee "$out/doctor.txt" || true # what it finds is the table's business, too
OMP_NUM_THREADS=1 $python -m pytest tests/gpu -p no:cacheprovider -W ignore::DeprecationWarning | tee "$out/tests.txt"
$python -m benchmarks.gpu --json "$out/gpu.json" | tee "$out/gpu.md"
