#!/usr/bin/env bash
# Runs launch/slurm.sbatch for real, on a SLURM of this machine alone: two tasks train together, are
# requeued in the middle, and go on. Needs the packages that slurm_cluster.sh names.
#
#   PYTHON=.venv/bin/python bash tests/slurm_requeue.sh FOLDER
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
folder="$(mkdir -p "$1" && cd "$1" && pwd)"
if [[ -z "${SLURM_CONF:-}" ]]; then
  exec bash "$here/slurm_cluster.sh" "$folder/cluster" bash "$0" "$folder"
fi

export PYTHONPATH="$here/.." JAX_PLATFORMS=cpu XLA_FLAGS="" JAX_DISABLE_MOST_OPTIMIZATIONS=1 SLOW=0.2
job="$(sbatch --parsable --nodes=1 --ntasks-per-node=2 --gpus-per-node=0 --cpus-per-task=1 \
  --output="$folder/log" "$here/../launch/slurm.sbatch" "${PYTHON:-python3}" \
  "$here/faulty_main.py" --config="$here/tiny_config.py:tokenizer" --workdir="$folder/work" \
  --config.tokenizer.steps=16 --config.evaluate_steps=0 --config.picture_steps=0)"

# Until the log has a line with these words; gives up after five minutes.
wait_for() {
  for ((i = 0; i < 600; i++)); do
    if grep -q "$1" "$folder/log" 2>/dev/null; then
      return
    fi
    sleep 0.5
  done
  echo "nobody said '$1':" >&2
  tail -n 20 "$folder/log" >&2
  squeue >&2
  exit 1
}

wait_for " 4/16 "
scontrol requeue "$job"
wait_for "saved at step"
wait_for "going on from step"
wait_for " 16/16 "
for ((i = 0; i < 120; i++)); do
  if [[ -z "$(squeue --noheader)" ]]; then
    break
  fi
  sleep 0.5
done
scontrol show job "$job" | grep -o "JobState=.*\|Restarts=[0-9]*\|ExitCode=.*"
grep "process\|saved at\|going on\|requeued\| [0-9]*/16 " "$folder/log"
test -f "$folder/work/1-tokenizer/summary.json"
