#!/usr/bin/env bash
# Several processes of one run on this machine, on its CPU: what a pod or a cluster does, in small.
#
#   bash launch/local_processes.sh [--dry_run] N COMMAND...
#
# COMMAND trains, samples or evaluates (python -m imgtx_jax.main ...), or hands its arguments on to
# one that does (bash launch/quickstart.sh, once it has been installed). It is run N times with --coordinator_address,
# --num_processes and --process_id added. Each process has a log of its own in LOGS (a new folder);
# the first one's is shown. Ends with the status of the first process that failed, or 0. The others
# of a failed one end by themselves within a minute; GRACE seconds (60) after it they are killed.
# PORT is the first process's (a free one); JAX_PLATFORMS is cpu unless it is set.
set -euo pipefail

dry_run=""
if [[ "${1:-}" == --dry_run ]]; then
  dry_run=1
  shift
fi
count="${1:-}"
if ! [[ "$count" =~ ^[1-9][0-9]*$ ]] || (($# < 2)); then
  echo "usage: bash launch/local_processes.sh [--dry_run] N COMMAND...; N is 1 or more" >&2
  exit 2
fi
shift

port="${PORT:-}"
while [[ -z "$port" ]]; do
  port=$((RANDOM % 12000 + 20000)) # below the ports that Linux hands out by itself
  if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    port=""
  fi
done
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

arguments() {
  echo "--coordinator_address=127.0.0.1:$port --num_processes=$count --process_id=$1"
}

if [[ -n "$dry_run" ]]; then
  for ((i = 0; i < count; i++)); do
    echo "JAX_PLATFORMS=$JAX_PLATFORMS$(printf ' %q' "$@") $(arguments "$i")"
  done
  exit
fi

logs="${LOGS:-$(mktemp -d "${TMPDIR:-/tmp}/imgtx_jax-processes.XXXXXX")}"
mkdir -p "$logs"
echo "$count processes; their logs: $logs"

running=()
stop() {
  for pid in "${running[@]}"; do
    kill -s "$1" "$pid" 2>/dev/null || true
  done
}
trap 'stop TERM' TERM INT

for ((i = 0; i < count; i++)); do
  # shellcheck disable=SC2046  # three words without spaces
  if ((i)); then
    "$@" $(arguments "$i") >"$logs/process-$i.log" 2>&1 &
  else
    "$@" $(arguments "$i") > >(tee "$logs/process-0.log") 2>&1 &
  fi
  running[i]=$!
  echo "$!" >"$logs/process-$i.pid"
done

status=0 deadline=""
while ((${#running[@]})); do
  sleep 0.2
  for i in "${!running[@]}"; do
    if kill -0 "${running[i]}" 2>/dev/null; then
      continue
    fi
    code=0
    wait "${running[i]}" 2>/dev/null || code=$?
    unset "running[i]"
    if ((code && !status)); then
      status=$code
      echo "process $i ended with status $code: $(tail -n 1 "$logs/process-$i.log")" >&2
    fi
  done
  if ((status)) && [[ -z "$deadline" ]]; then
    deadline=$((SECONDS + ${GRACE:-60}))
  elif [[ -n "$deadline" ]] && ((SECONDS >= deadline)); then
    stop KILL
  fi
done
exit "$status"
