#!/usr/bin/env bash
# Trains on a TPU slice in GKE: fills in gke_jobset.yaml and hands it to kubectl.
#
#   IMAGE=... BUCKET=... bash launch/gke_jobset.sh [--dry_run] ARGUMENTS of imgtx_jax.main...
#
# --workdir must lie under /runs, where the bucket is mounted. Settings, by environment: NAME
# (imgtx-jax), IMAGE (see launch/Dockerfile), BUCKET, ACCELERATOR (tpu-v5-lite-podslice), TOPOLOGY
# (16x16), CHIPS of a host (4), SERVICE_ACCOUNT (default; it must be allowed to use the bucket).
# --dry_run prints the manifest and the command. A second run under a NAME replaces the first:
# kubectl delete jobset NAME. Logs: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME
set -euo pipefail

dry_run=""
if [[ "${1:-}" == --dry_run ]]; then
  dry_run=1
  shift
fi
: "${IMAGE:?"names the image to run: see launch/Dockerfile"}"
: "${BUCKET:?"names the bucket that is mounted at /runs"}"
topology="${TOPOLOGY:-16x16}" chips="${CHIPS:-4}"
if ! [[ "$topology" =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ && "$chips" =~ ^[1-9][0-9]*$ ]]; then
  echo "TOPOLOGY=$topology or CHIPS=$chips is no number of chips, such as 16x16 and 4" >&2
  exit 2
fi
all=$((${topology//x/*}))
if ((all % chips)); then
  echo "TOPOLOGY=$topology has $all chips, which CHIPS=$chips a host does not divide" >&2
  exit 2
fi

# Each argument as a YAML string in single quotes.
arguments=""
for argument in "$@"; do
  arguments+="${arguments:+, }'${argument//"'"/"''"}'"
done

manifest="$(cat "$(dirname "${BASH_SOURCE[0]}")/gke_jobset.yaml")"
fill() {
  manifest="${manifest//"$1_"/"$2"}"
}
fill NAME "${NAME:-imgtx-jax}"
fill HOSTS "$((all / chips))"
fill CHIPS "$chips"
fill TOPOLOGY "$topology"
fill ACCELERATOR "${ACCELERATOR:-tpu-v5-lite-podslice}"
fill SERVICE_ACCOUNT "${SERVICE_ACCOUNT:-default}"
fill IMAGE "$IMAGE"
fill BUCKET "${BUCKET#gs://}"
fill ARGS "$arguments"

if [[ -n "$dry_run" ]]; then
  echo "$manifest"
  echo "# kubectl apply -f -    with the above as its input"
else
  kubectl apply -f - <<<"$manifest"
fi
