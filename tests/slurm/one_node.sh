#!/usr/bin/env bash
# Runs a command in a SLURM cluster of one node: this machine, as the user who calls. munged,
# slurmctld and slurmd start with a configuration in a temporary folder, on ports of their own, and
# end with the command. Debian: apt-get install slurm-wlm munge
#
#   tests/slurm/one_node.sh sbatch --wait --ntasks=2 launch/slurm.sbatch CONFIG --data … --out …
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin # of the daemons

if (($# == 0)); then
  awk 'NR > 1 && !/^#/ {exit} NR > 1 {sub(/^# ?/, ""); print}' "$0" >&2 # the lines above
  exit 2
fi

folder=$(mktemp -d)
chmod 755 "$folder" # munged wants its socket reachable, and its key not
daemons=()

stop() {
  local daemon
  # Tasks outlive the daemons.
  scancel --user="$(id -un)" &> /dev/null || true
  for ((i = 0; i < 300; i++)); do
    [[ -n $(squeue --noheader 2> /dev/null) ]] || break
    sleep 0.1
  done
  for daemon in "${daemons[@]}"; do
    kill "$daemon" 2> /dev/null || true
  done
  wait
  rm -rf "$folder"
}
trap stop EXIT

free_ports() {
  python3 -c 'import socket
sockets = [socket.socket() for _ in range(2)]
for s in sockets: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))'
}

# Ends the script with the daemons' logs where a condition does not come true within 30 s.
until_true() {
  for ((i = 0; i < 300; i++)); do
    if "$@" &> /dev/null; then return; fi
    sleep 0.1
  done
  echo "one_node.sh: $* failed for 30 s" >&2
  tail -n 20 "$folder"/*.log >&2
  exit 1
}

read -r control_port node_port < <(free_ports)
user=$(id -un)
mkdir -m 700 "$folder/state" "$folder/spool"
# localhost is both the node's name and its address: tasks find their coordinator by the name.
# cred_expire: what a job that was queued again waits before it starts, 120 s if not given.
cat > "$folder/slurm.conf" << CONF
ClusterName=one_node
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$control_port
SlurmdPort=$node_port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=localhost Default=YES State=UP
CONF
export SLURM_CONF=$folder/slurm.conf

head -c 1024 /dev/urandom > "$folder/munge.key"
chmod 600 "$folder/munge.key"
munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
  --pid-file="$folder/munged.pid" --seed-file="$folder/munged.seed" \
  --log-file="$folder/munged.log" 2> "$folder/munged.err.log" &
daemons+=($!)
until_true munge --no-input --socket="$folder/munge.socket"

slurmctld -D -c &> "$folder/slurmctld.out.log" &
daemons+=($!)
slurmd -D -N localhost &> "$folder/slurmd.out.log" &
daemons+=($!)
node_is_idle() { [[ $(sinfo --noheader --format=%T) == idle ]]; }
until_true node_is_idle

"$@"
