#!/usr/bin/env bash
# Trains with N processes on this machine that share every batch, as machines of a cluster do: to
# rehearse one, or to give each GPU a process of its own.
#
#   launch/local.sh 2 configs/spine_t1.py --data prepared --out runs/two
#
# All after N goes to penn train. Ctrl-C and SIGTERM save and end all processes (exit code 75); the
# same command with --resume goes on, with any N.
set -euo pipefail

if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ ]] || (($# < 2)); then
  awk 'NR > 1 && !/^#/ {exit} NR > 1 {sub(/^# ?/, ""); print}' "$0" >&2 # the lines above
  exit 2
fi
processes=$1
shift
# A GPU each, of those that CUDA_VISIBLE_DEVICES names; where it is not set, those of the first
# numbers. Elsewhere the variable means nothing.
IFS=, read -r -a gpus <<< "${CUDA_VISIBLE_DEVICES-$(seq -s , 0 $((processes - 1)))}"
if ((${#gpus[@]} > 0 && ${#gpus[@]} < processes)); then
  echo "local.sh: $processes processes, but CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES" >&2
  exit 2
fi

# A port that is free now: the first process listens on it, the others meet there.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')

# A shell's background processes do not hear Ctrl-C themselves.
trap 'kill -TERM $(jobs -p) 2> /dev/null || true' INT TERM
children=()
for ((i = 0; i < processes; i++)); do
  CUDA_VISIBLE_DEVICES=${gpus[i]-} penn train "$@" \
    --coordinator "127.0.0.1:$port" --processes "$processes" --process "$i" &
  children+=($!)
done

code=0
for child in "${children[@]}"; do
  while :; do
    status=0
    wait "$child" || status=$?
    # The trap above ends a wait before the process has saved.
    kill -0 "$child" 2> /dev/null || break
  done
  ((code)) || code=$status
done
exit "$code"
