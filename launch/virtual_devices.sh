#!/usr/bin/env bash
# The same command on several virtual CPU devices, to try a sharded run without accelerators:
#
#   launch/virtual_devices.sh 4 --config=configs/digits.py:smoke --workdir=/tmp/sharded
#
# Needs nothing but the package: the devices share this machine's cores, in one process. What comes
# out is what one device learns, beyond the order of sums. --config.mesh.fsdp=4 splits the model
# too.
set -euo pipefail
devices=${1:?number of devices}
shift
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
exec python -m guided_distill.main "$@"
