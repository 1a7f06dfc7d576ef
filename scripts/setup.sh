#!/usr/bin/env bash
# Makes .venv from the pinned list of this machine's kind. Run again, it finds its stamp and changes nothing.
#
#   ACCEL=cpu|gpu      instead of asking whether an NVIDIA GPU answers
#   LIST=...           instead of requirements/cpu.txt or gpu.txt, as for an image without the tests
#   PYTHON=...         instead of python3.11
#   PIP_FIND_LINKS=... a folder with the CPU wheel of torch, for machines that cannot reach PyTorch's own index
set -euo pipefail
cd "$(dirname "$0")/.."

readonly UV=uv==0.13.9
python=${PYTHON:-python3.11}

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

accel=${ACCEL:-}
if [ -z "$accel" ]; then
  accel=cpu
  if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then accel=gpu; fi
fi
case $accel in cpu | gpu) ;; *) die "ACCEL is '$accel'; allowed: cpu, gpu" ;; esac

list=${LIST:-requirements/$accel.txt}
home="$accel in $PWD"
stamp="$home from $(sha256sum <"$list")"
is_done() { [ "$(cat .venv/installed 2>/dev/null)" = "$stamp" ]; }
is_done && exit 0

exec 9<requirements
flock 9 # two first runs at once: the second waits, then finds the work done
is_done && exit 0

"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || die "$python is not Python 3.11.
  Install it (Debian 12: apt-get install python3.11-venv) or name it: PYTHON=/where/it/is make setup"

started=$SECONDS
rm -f .venv/installed # written last, so that what was begun is never taken for done
clear=
if [ -e .venv/home ] && [ "$(cat .venv/home)" != "$home" ]; then
  say "the .venv here was made for $(cat .venv/home); making it anew"
  clear=--clear # the two kinds of vLLM share a folder, and scripts know where they were installed
fi
say "making .venv for $accel (ACCEL=cpu or ACCEL=gpu to choose)"
"$python" -m venv $clear .venv || die "python3.11 cannot make virtual environments; on Debian: apt-get install python3.11-venv"
echo "$home" >.venv/home
.venv/bin/python -m pip install --quiet --disable-pip-version-check "$UV"
uv() { .venv/bin/uv pip "$@" --python .venv/bin/python; }

if [ "$accel" = cpu ]; then
  # By its local version: plain torch would be the CUDA build, gigabytes of it, wherever pip knows no other.
  torch=$(grep '^torch==' "$list")
  say "installing $torch"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$torch" 2>.venv/pip.log ||
    uv install --quiet --no-deps --torch-backend=cpu "$torch" 2>.venv/uv.log ||
    die "no $torch: pip finds none (.venv/pip.log), and PyTorch's own index does not answer (.venv/uv.log).
  Connect this machine to it, or put the wheel of $torch for Python 3.11 into a folder and run
  PIP_FIND_LINKS=/that/folder make setup"
fi

say "installing the $(grep -c == "$list") pins of $list"
# The lists are complete. Without their CUDA-only parts the CPU packages work, though they declare a need for them.
# Compiled here once: a server starts a process for each model, and each would compile them again where it may not write.
uv install --quiet --no-deps --compile-bytecode -r "$list"
uv install --quiet --no-deps --editable .
echo "$stamp" >.venv/installed
say "done in $((SECONDS - started)) s"
