#!/usr/bin/env bash
# From an empty clone to a trained image generator on emoji: a virtual environment, the package, and
# the main job on the CPU. Run again, it goes on where it was, and says so when nothing is left.
#
#   bash launch/quickstart.sh [flags of imgtx_jax.main]
#
# WORKDIR names the work directory (runs/quickstart in the clone); PYTHON and VENV as in environment.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

environment
workdir="${WORKDIR:-$root/runs/quickstart}"
"$python" -m imgtx_jax.main --config "$root/configs/quickstart.py" --workdir "$workdir" "$@"
if [[ -f "$workdir/report.html" ]]; then
  echo "The report: $workdir/report.html"
fi
