#!/usr/bin/env bash
# Fills .carry/ for a GPU machine without a network: wheels of what its Python may lack, and some images.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
mkdir -p .carry/wheels
platforms=()
for version in 2014 _2_17 _2_27 _2_28 _2_31; do platforms+=(--platform "manylinux${version}_x86_64"); done
for version in 3.11 3.12; do
    $python -m pip download --quiet --no-deps --only-binary=:all: --python-version $version --implementation cp \
        "${platforms[@]}" --constraint constraints.txt --dest .carry/wheels \
        pydantic pydantic-core annotated-types typing-inspection simplejpeg faiss-cpu psutil
done
$python -m benchmarks.gpu --carry .carry/images.parquet
du -sh .carry
