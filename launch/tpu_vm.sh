#!/usr/bin/env bash
# A run on a TPU of one machine:
#
#   launch/tpu_vm.sh --name=TPU --zone=ZONE --type=v5litepod-8 [--project=PROJECT] [--spot] \
#       [--queued] [--poll_seconds=30] [--version=RUNTIME] [--source=.] [--python=python3.11] \
#       [--max_restarts=100] [--dry_run] -- --config=configs/cifar10.py --workdir=runs/cifar10
#   launch/tpu_vm.sh --name=TPU --zone=ZONE [--queued] --delete
#
# As launch/tpu_pod.sh, where the options are explained, for one worker: creates the TPU or finds
# it, installs, runs, follows the log, and starts the same command again after a preemption. The
# workdir is a folder on that worker, which goes with it, or one that outlives it: a mounted bucket
# or network file system. --dry_run prints the commands.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/tpu_common.sh"

parse_options "$@"
run_on_tpu 0 "${arguments[@]}"
