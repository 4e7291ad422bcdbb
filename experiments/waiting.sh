#!/usr/bin/env bash
# Measures what a person waits for, and how fast photographs are prepared. Writes records and figures into a folder:
#   ./experiments/waiting.sh experiments/results/waiting
# Takes about seven minutes on two idle cores. Needs nothing but the package; simplejpeg is measured too if it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?give a folder for the results: $0 OUT}
export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}
mkdir -p "$out"

# The quickstart, and the paper's network at full size on images of noise.
python -m alexnet_jax.benchmark --waiting --flagfile=experiments/quickstart.cfg --rounds="${ROUNDS:-3}" \
  --figure="$out/quickstart.png" >"$out/quickstart.json"
python -m alexnet_jax.benchmark --waiting --dataset=synthetic --crop_size=227 --schedule=constant \
  --rounds="${FULL_ROUNDS:-2}" --figure="$out/full_size.png" >"$out/full_size.json"
python -m experiments.decoders >"$out/decoders.json"
echo "results are in $out" >&2
