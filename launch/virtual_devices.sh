#!/usr/bin/env bash
# The same command on several virtual CPU devices, to try a sharded run without accelerators:
#
#   launch/virtual_devices.sh [--dry_run] 4 --config=configs/digits.py:smoke --workdir=/tmp/sharded
#
# Needs nothing but the package: the devices share this machine's cores, in one process; $PYTHON
# names the interpreter. What comes out is what one device learns, beyond the order of sums.
# --config.mesh.fsdp=4 splits the model too. --dry_run prints the command.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

options="dry_run" dry_run=false
own=()
while [[ ${1:-} == --* ]]; do
    own+=("$1")
    shift
done
parse_options "${own[@]}"
devices=${1:-}
[[ -n $devices ]] || fail "the number of devices is missing: see --help"
[[ $devices =~ ^[1-9][0-9]*$ ]] || fail "the number of devices must be a whole number, got $devices"
shift
if [[ ${1:-} == --dry_run ]]; then
    dry_run=true
    shift
fi

flag=--xla_force_host_platform_device_count=$devices
command=(env JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }$flag"
    "${PYTHON:-python}" -m guided_distill.main "$@")
[[ $dry_run == true ]] || exec "${command[@]}" # Signals are main's.
run "${command[@]}"
