#!/usr/bin/env bash
# The same command on several virtual CPU devices, to try a sharded run without accelerators:
#   launch/virtual_devices.sh 4 --config=configs/digits.py:smoke --workdir=/tmp/sharded
set -euo pipefail
devices=${1:?number of devices}
shift
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
exec python -m guided_distill.main "$@"
