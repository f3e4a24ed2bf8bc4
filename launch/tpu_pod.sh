#!/usr/bin/env bash
# Trains on a Cloud TPU pod slice: one process a worker, the same command on all of them.
#
#   bash launch/tpu_pod.sh [--dry_run] create              asks for the slice and waits for it
#   bash launch/tpu_pod.sh [--dry_run] setup               copies this clone to all workers, installs
#   bash launch/tpu_pod.sh [--dry_run] run ARGUMENTS...    starts imgtx_jax.main with them
#   bash launch/tpu_pod.sh [--dry_run] watch ARGUMENTS...  create, setup and run; again when preempted
#   bash launch/tpu_pod.sh [--dry_run] stop                SIGTERM: saves at one step, on all workers
#   bash launch/tpu_pod.sh [--dry_run] logs [FOLDER]       fetches every worker's log (./tpu-logs)
#   bash launch/tpu_pod.sh [--dry_run] delete
#
# Settings, by environment: NAME (imgtx-jax), ZONE, TYPE (v5litepod-256), VERSION of the runtime (that
# of the TYPE), SPOT (1: cheaper, and preempted at times), BUCKET (gs://...: mounted on all workers as
# /mnt/runs; --workdir must lie there, for all workers share it). --dry_run prints the commands.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
dry_run=""
if [[ "${1:-}" == --dry_run ]]; then
  dry_run=1
  shift
fi
action="${1:-}"
shift || true

name="${NAME:-imgtx-jax}"
type="${TYPE:-v5litepod-256}"
log=imgtx_jax.log

usage() {
  echo "$1; usage: bash launch/tpu_pod.sh [--dry_run] create|setup|run|watch|stop|logs|delete" >&2
  exit 2
}
case "$action" in
  create | setup | run | watch | stop | logs | delete) ;;
  *) usage "no such action: '$action'" ;;
esac
zone="${ZONE:?"names the zone of the slice, such as ZONE=us-west4-a"}"
case "$type" in
  v5litepod-*) version=v2-alpha-tpuv5-lite ;;
  v5p-*) version=v2-alpha-tpuv5 ;;
  v6e-*) version=v2-alpha-tpuv6e ;;
  v[234]-*) version=tpu-ubuntu2204-base ;;
  *) version="${VERSION:?"names the runtime of TYPE=$type: gcloud compute tpus tpu-vm versions list"}" ;;
esac
version="${VERSION:-$version}"

# Prints a command, and runs it unless this is a dry run.
do_it() {
  if [[ -n "$dry_run" ]]; then
    local word line=""
    for word in "$@"; do
      [[ "$word" =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word="${word@Q}"
      line+=" $word"
    done
    echo "${line# }"
  else
    "$@"
  fi
}

gtpu() {
  do_it gcloud compute tpus "$@" --zone="$zone"
}

# One shell command on every worker at once.
on_all() {
  gtpu tpu-vm ssh "$name" --worker=all --command="$1"
}

create() {
  gtpu queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$version" ${SPOT:+--spot}
  if [[ -n "$dry_run" ]]; then
    echo "# waits until this says ACTIVE:"
    state
    return
  fi
  until [[ "$(state)" == ACTIVE ]]; do
    case "$(state)" in
      FAILED | SUSPENDED)
        echo "the slice was not given: see gcloud compute tpus queued-resources describe $name" >&2
        return 1
        ;;
    esac
    sleep 30
  done
}

# ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED (preempted), FAILED, ... ; nothing where there is none.
state() {
  gtpu queued-resources describe "$name" --format="value(state.state)"
}

setup() {
  local archive=/tmp/imgtx_jax.tar.gz mount=""
  do_it git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  gtpu tpu-vm scp "$archive" "$name:imgtx_jax.tar.gz" --worker=all
  if [[ -n "${BUCKET:-}" ]]; then
    mount="sudo mkdir -p /mnt/runs && (mountpoint -q /mnt/runs || (command -v gcsfuse >/dev/null ||"
    mount+=" (sudo apt-get update && sudo apt-get install -y gcsfuse)) && sudo gcsfuse --implicit-dirs"
    mount+=" -o allow_other --file-mode=666 --dir-mode=777 ${BUCKET#gs://} /mnt/runs) && "
  fi
  # The runtimes bring Python 3.10; uv brings a newer one without touching theirs.
  on_all "${mount}mkdir -p imgtx_jax && tar -xzf imgtx_jax.tar.gz -C imgtx_jax && cd imgtx_jax && \
python3 -m pip install --quiet --user uv && ~/.local/bin/uv python install 3.12 && \
export PYTHON=\$(~/.local/bin/uv python find 3.12) && source launch/environment.sh && environment tpu"
}

run() {
  local arguments=""
  if (($#)); then
    arguments="$(printf ' %q' "$@")"
  fi
  # setsid: the command outlives the connection. Its status is the last line of the log.
  on_all "cd imgtx_jax && echo started >>../$log && (setsid nohup bash -c '.venv/bin/python -m imgtx_jax.main \"\$@\" & \
echo \$! >../imgtx_jax.pid; wait \$!; echo \"ended with status \$?\"' imgtx_jax$arguments \
>>../$log 2>&1 </dev/null &)"
}

stop() {
  on_all "kill -TERM \$(cat imgtx_jax.pid)"
}

logs() {
  local folder="${1:-tpu-logs}" worker=0
  do_it mkdir -p "$folder"
  if [[ -n "$dry_run" ]]; then
    gtpu tpu-vm scp "$name:$log" "$folder/worker-0.log" --worker=0
    echo "# and so on, until there is no such worker"
    return
  fi
  while gtpu tpu-vm scp "$name:$log" "$folder/worker-$worker.log" --worker="$worker"; do
    worker=$((worker + 1))
  done
  ((worker > 0))
}

delete() {
  gtpu queued-resources delete "$name" --force --quiet
}

# What the first worker's log says that the run ended with; nothing while it runs.
ended() {
  gtpu tpu-vm ssh "$name" --worker=0 --command="tail -n 1 $log | sed -n 's/^ended with status //p'"
}

# Until the run ends by itself: after a preemption or a lost worker the same command goes on.
watch() {
  local status
  if [[ -n "$dry_run" ]]; then
    create
    setup
    run "$@"
    echo "# every minute:"
    state
    ended
    echo "# when the slice is no longer ACTIVE: delete, and all of it again"
    delete
    return
  fi
  local started=""
  while true; do
    if [[ "$(state 2>/dev/null || true)" != ACTIVE ]]; then
      delete 2>/dev/null || true
      create
      started=""
    fi
    if [[ -z "$started" ]]; then # also on a slice that was there before; what runs there goes on
      setup
      run "$@"
      started=1
    fi
    sleep 60
    status="$(ended 2>/dev/null || true)"
    case "$status" in
      "") ;;
      75 | 134 | 137 | 143) # a worker was lost, or stopped by SIGTERM; the others have ended soon
        sleep 60
        run "$@"
        ;;
      *) exit "$status" ;;
    esac
  done
}

"$action" "$@"
