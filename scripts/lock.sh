#!/usr/bin/env bash
# Resolves pyproject.toml into requirements/cpu.txt and gpu.txt, and what of them serves into cpu-serve.txt and
# gpu-serve.txt; pins already there stay where they can.
# Arguments go to uv, as in: make lock ARGS=--upgrade
#
#   UV_FIND_LINKS=...  a folder with the CPU wheel of torch, for machines that cannot reach PyTorch's own index
set -euo pipefail
cd "$(dirname "$0")/.."

lock() {
  local accel=$1
  shift
  compile=(.venv/bin/uv pip compile pyproject.toml --extra "$accel" --python-version 3.11 --quiet --no-header --no-annotate)
  "${compile[@]}" --extra test --output-file "requirements/$accel.txt" "$@"
  # the same without the tests, for an image; what it finds in its output it keeps
  cp "requirements/$accel.txt" "requirements/$accel-serve.txt"
  "${compile[@]}" --constraint "requirements/$accel.txt" --output-file "requirements/$accel-serve.txt" "$@"
}

cpu_torch=(--torch-backend=cpu)
if [ -n "${UV_FIND_LINKS:-}" ]; then cpu_torch=(); fi

# Only CUDA builds of these exist beside a CPU torch; installed, they break the import of transformers and diffusers.
lock cpu --excludes requirements/cpu-excludes.txt "${cpu_torch[@]}" "$@"
lock gpu "$@"
