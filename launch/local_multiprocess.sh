#!/usr/bin/env bash
# Several processes of one run on this machine, over loopback, with virtual CPU devices:
#
#   launch/local_multiprocess.sh [--processes=2] [--devices_per_process=2] [--port=PORT] [--dry_run] \
#       -- --config=configs/digits.py:smoke --workdir=/tmp/run
#
# Needs nothing but the package; $PYTHON names the interpreter, and --port is a free one where it is
# not given. What comes out is what one process learns, beyond the order of sums; process 0 writes
# and speaks. Ctrl-C and SIGTERM reach all of them. --dry_run prints the commands. Ends with the
# exit code of the first process that has one to tell: 75 (another process is gone) only where none
# has a reason of its own.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

options="processes devices_per_process port dry_run"
processes=2 devices_per_process=2 port="" dry_run=false
parse_options "$@"
require_count processes
require_count devices_per_process
python=${PYTHON:-python}
free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
[[ -n $port || $dry_run == true ]] || port=$("$python" -c "$free_port")

pids=()
for ((k = 0; k < processes; k++)); do
    command=(env JAX_PLATFORMS=cpu
        XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices_per_process"
        "$python" -m guided_distill.main --coordinator="127.0.0.1:${port:-PORT}"
        --num_processes="$processes" --process_id="$k" --join_timeout=60 "${arguments[@]}")
    if [[ $dry_run == true ]]; then
        run "${command[@]}"
    else
        "${command[@]}" & # Not through `run`: the number must be the process's own, to signal it.
        pids+=($!)
    fi
done
[[ $dry_run == false ]] || exit 0

trap 'kill -TERM "${pids[@]}" 2> /dev/null || true' INT TERM
code=0
for pid in "${pids[@]}"; do
    while true; do # A signal ends `wait` before the process.
        status=0
        wait "$pid" || status=$?
        kill -0 "$pid" 2> /dev/null || break
    done
    if ((status != 0 && (code == 0 || code == 75))); then code=$status; fi
done
exit "$code"
