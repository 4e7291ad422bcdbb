#!/usr/bin/env bash
# Measures what a person waits for, and how fast photographs are prepared. Writes records and figures into a folder:
#   ./experiments/waiting.sh experiments/results/waiting
# A record is kept once it is measured: rerun to go on, delete a file to measure it anew.
# Takes about five minutes on two idle cores. Needs nothing but the package; simplejpeg is measured too if it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?give a folder for the results: $0 OUT}
export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}
mkdir -p "$out"

# measure NAME COMMAND...: what the command prints becomes OUT/NAME.json, once it has ended well.
measure() {
  local record=$out/$1.json
  if [ -e "$record" ]; then
    echo "kept $record" >&2
    return
  fi
  echo "measuring $1" >&2
  "${@:2}" >"$record.part"
  mv "$record.part" "$record"
}

# The quickstart, and the paper's network at full size on images of noise.
measure quickstart python -m alexnet_jax.benchmark --waiting --flagfile=experiments/quickstart.cfg \
  --rounds="${ROUNDS:-3}" --figure="$out/quickstart.png"
measure full_size python -m alexnet_jax.benchmark --waiting --dataset=synthetic --crop_size=227 --schedule=constant \
  --rounds="${FULL_ROUNDS:-2}" --figure="$out/full_size.png"
measure decoders python -m experiments.decoders
echo "results are in $out" >&2
