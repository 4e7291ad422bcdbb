#!/usr/bin/env bash
# Measures everything for the benchmark page on one accelerator. Writes records and figures into a folder:
#   ./experiments/benchmark.sh OUT
# A smaller version for two CPU cores: SIZE=small ./experiments/benchmark.sh OUT
# Needs the set prepared at 256 px (small: groceries at 112 px), and PyTorch (requirements-benchmark.txt).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?give a folder for the results: $0 OUT}
if [ "${SIZE:-full}" = small ]; then
  batches="8 16" precisions="float32 bfloat16" rounds=1 steps=1 curve_steps=20
  images="--dataset=${DATASET:-groceries} --image_size=112 --crop_size=99 --batch_size=16 --bias_init=0.1 --learning_rate=0.001"
  crop="--crop_size=99 --image_size=112"
else
  batches="128 1024" precisions="bfloat16 float32" rounds=5 steps=50 curve_steps=2000
  images="--dataset=${DATASET:-cifar10} --image_size=256 --crop_size=227 --batch_size=128 --bias_init=0.1"
  crop="--crop_size=227 --image_size=256"
fi
mkdir -p "$out"

for precision in $precisions; do
  for batch in $batches; do
    name=$out/pytorch_${precision}_$batch
    # shellcheck disable=SC2086  # one word per flag
    python -m alexnet_jax.benchmark --against=pytorch --precision="$precision" --batch_size="$batch" $crop \
      --rounds=$rounds --steps=$steps --figure="$name.png" >"$name.json"
  done
done

# Images that stay on the device: training on them against one repeated batch, and the loader beside JPEG pipelines.
# shellcheck disable=SC2086
python -m experiments.input_pipelines $images --precision=bfloat16 --data_on_device=yes \
  --rounds=$rounds --steps=$steps --figure="$out/input.png" >"$out/input.json"

# The same run in both precisions.
for precision in float32 bfloat16; do
  # shellcheck disable=SC2086
  python -m alexnet_jax.train $images --schedule=constant --steps=$curve_steps --log_every=$((curve_steps / 20)) \
    --precision=$precision --workdir="$out/curve_$precision"
done
python -m experiments.precision_curves --float32="$out/curve_float32" --bfloat16="$out/curve_bfloat16" \
  --figure="$out/precision.png" >"$out/precision.json"
echo "results are in $out" >&2
