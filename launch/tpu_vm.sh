#!/usr/bin/env bash
# Trains on a slice of Cloud TPU machines, from here, by gcloud. In this order:
#
#   launch/tpu_vm.sh create                     # from now on it costs money, used or not
#   launch/tpu_vm.sh install                    # this tree's last commit, on all machines
#   launch/tpu_vm.sh run configs/spine_t1.py --data gs://BUCKET/prepared --out gs://BUCKET/runs/a
#   launch/tpu_vm.sh follow                     # the log; a lost connection does not end the run
#   launch/tpu_vm.sh stop                       # optional: saves; the same run goes on from there
#   launch/tpu_vm.sh collect gs://BUCKET/runs/a runs/a
#   launch/tpu_vm.sh delete                     # from now on it costs nothing
#
# Read from the environment: TPU_NAME (penn), TPU_TYPE (v5litepod-16), TPU_VERSION
# (v2-alpha-tpuv5-lite), TPU_SPOT (1: cheaper, may be taken away). Project and zone are gcloud's:
# gcloud config set project …; gcloud config set compute/zone …
# shellcheck disable=SC2016 # what stands in single quotes is for the machines' shells
set -euo pipefail

usage() {
  awk 'NR > 1 && !/^#/ {exit} NR > 1 {sub(/^# ?/, ""); print}' "$0" >&2 # the lines above
  exit 2
}

name=${TPU_NAME:-penn}
tpus=(gcloud compute tpus tpu-vm)

on_all() { "${tpus[@]}" ssh "$name" --worker=all --command="$1"; }

command=${1:-}
(($# == 0)) || shift
case $command in
  create)
    "${tpus[@]}" create "$name" ${TPU_SPOT:+--spot} \
      --accelerator-type="${TPU_TYPE:-v5litepod-16}" \
      --version="${TPU_VERSION:-v2-alpha-tpuv5-lite}"
    ;;
  install)
    archive=$(mktemp -d)/penn_jax.tar.gz
    git -C "$(dirname "$0")/.." archive --format=tar.gz --output="$archive" HEAD
    "${tpus[@]}" scp "$archive" "$name": --worker=all
    rm -r "$(dirname "$archive")"
    # uv brings a Python of its own: that of the TPU's image is too old.
    on_all 'set -e; mkdir -p penn_jax; tar -xzf penn_jax.tar.gz -C penn_jax; cd penn_jax
      python3 -m pip install --quiet --user uv
      python3 -m uv venv --quiet --clear --python 3.12 .venv
      python3 -m uv pip install --quiet --python .venv/bin/python ".[tpu]"
      .venv/bin/penn --version'
    ;;
  run)
    (($#)) || usage
    arguments=$(printf '%q ' "$@")
    # Detached, with a log and a number to stop it by. --resume begins a run that is not there yet.
    on_all "cd penn_jax || exit
      if { kill -0 \"\$(cat penn.pid)\"; } 2> /dev/null; then echo 'under way'; exit 1; fi
      nohup .venv/bin/penn train $arguments --resume > penn.log 2>&1 < /dev/null &
      echo \$! > penn.pid"
    exec bash "$0" follow
    ;;
  follow)
    "${tpus[@]}" ssh "$name" --worker=0 \
      --command='cd penn_jax && tail --lines=+1 --follow --pid="$(cat penn.pid)" penn.log'
    ;;
  stop)
    on_all 'kill -TERM "$(cat penn_jax/penn.pid)"'
    ;;
  collect)
    (($# == 2)) || usage
    mkdir -p "$2"
    gcloud storage rsync --recursive "$1" "$2"
    ;;
  delete)
    "${tpus[@]}" delete "$name" --quiet
    ;;
  *)
    usage
    ;;
esac
