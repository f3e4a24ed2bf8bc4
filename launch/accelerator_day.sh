#!/usr/bin/env bash
# All that an hour or a day of an accelerator should be used for, most valuable first: checks against
# the CPU, speed, trainings. Cut off at any time, the same command goes on.
#
#   bash launch/accelerator_day.sh --out DIR --data DIR [--wheels DIR] [--seconds N] [--hours H]
#                                  [--only NAME,...] [--retry] [--tiny] [--dry_run]
#
# --out      what comes of it: NAME.json or NAME.failed.json of every piece, logs, traces, pictures and
#            work directories with checkpoints. Keep it: what stands there is not run again.
# --data     may hold emoji_noto64.npz, tiny_imagenet/, monet_photo/ and styles/, as tar files or
#            folders; a training whose data are not there is left out.
# --wheels   a folder of wheels of what the machine lacks: all are installed, without a network.
# --seconds  end before so many (540): no piece takes longer, and a training is saved and goes on.
# --hours    for all trainings together (4); their steps are chosen by the speed measured before.
# --only     these pieces; --retry: those that failed once more; --tiny: all of it in small, on a CPU;
# --dry_run  prints the pieces and their commands.
#
# Status 0: nothing is left to do; 3: run it again. PYTHON names the interpreter (python3), SCRATCH a
# folder for unpacked data and compiled programs (OUT/scratch). Then
#
#   python3 launch/accelerator_day/results.py DIR --write docs/results.md
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export XLA_CLIENT_MEM_FRACTION="${XLA_CLIENT_MEM_FRACTION:-.92}"
exec "$python" "$root/launch/accelerator_day/run.py" "$@"
