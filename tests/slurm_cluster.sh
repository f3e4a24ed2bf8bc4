#!/usr/bin/env bash
# A SLURM of one machine on loopback, for trying launch/slurm.sbatch (tests/slurm_requeue.sh does):
# from Debian's packages slurmctld, slurmd, slurm-client and munge (apt-get install
# --no-install-recommends ...), whose own services are left alone.
#
#   bash tests/slurm_cluster.sh FOLDER COMMAND...
#
# Starts it in FOLDER, runs COMMAND with SLURM_CONF set, and stops it; ends with COMMAND's status.
set -euo pipefail

folder="$(mkdir -p "$1" && cd "$1" && pwd)"
shift
me="$(id -un)"
host="$(hostname -s)"
ports=$((RANDOM % 5000 + 21000))
mkdir -p "$folder"/{state,spool}

head -c 128 /dev/urandom >"$folder/munge.key"
chmod 400 "$folder/munge.key"
cat >"$folder/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
SlurmctldPort=$ports
SlurmdPort=$((ports + 1))
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
JobRequeue=1
KillWait=30
NodeName=$host NodeAddr=127.0.0.1 CPUs=64 Boards=1 SocketsPerBoard=1 CoresPerSocket=64 ThreadsPerCore=1 State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
SlurmdParameters=config_overrides
END
export SLURM_CONF="$folder/slurm.conf"

stop() {
  for daemon in slurmd slurmctld munged; do
    if [[ -s "$folder/$daemon.pid" ]]; then
      kill "$(cat "$folder/$daemon.pid")" 2>/dev/null || true
    fi
  done
}
trap stop EXIT

munged --key-file="$folder/munge.key" --socket="$folder/munge.socket" --force \
  --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
slurmctld
slurmd -N "$host" 2>/dev/null || slurmd
for ((i = 0; i < 100; i++)); do
  if [[ "$(sinfo --noheader --format=%t 2>/dev/null)" == idle ]]; then
    "$@"
    exit
  fi
  sleep 0.2
done
echo "SLURM did not start: see $folder/slurmctld.log and slurmd.log" >&2
tail -n 5 "$folder"/slurm*.log >&2
exit 1
