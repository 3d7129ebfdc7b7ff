#!/usr/bin/env bash
# A run on all workers of a TPU slice:
#
#   launch/tpu_pod.sh --name=SLICE --zone=ZONE --type=v5litepod-16 [--project=PROJECT] [--spot] \
#       [--queued] [--poll_seconds=30] [--version=RUNTIME] [--source=.] [--python=python3.11] \
#       [--max_restarts=100] [--dry_run] -- --config=configs/imagenet64.py \
#       --workdir=/shared/imagenet64
#   launch/tpu_pod.sh --name=SLICE --zone=ZONE [--queued] --delete
#
# Needs gcloud, signed in, with a quota for TPUs. Finds the slice or creates it, copies --source to
# every worker (without .git, runs, environments and caches), installs, starts main on all of them
# and follows the log of worker 0. After a preemption, or where a worker is lost, it starts the same
# command again, which goes on from the last checkpoint; a mistake of the user's (code 1) ends it.
# The workdir must be a folder that all workers see.
#
# --queued asks for the slice by a request of the same name, and waits until it is granted; ask again
# with the same command, as often as you like. --version is the TPU's software: that of --type where
# it is not given. --poll_seconds is the time between two looks at a state.
#
# Nothing is deleted but with --delete (with --queued, the request and its slice); only a slice that
# was preempted is deleted on the way, because it cannot be started again. Main's log and exit code
# stay on the workers, in guided_distill/; --dry_run prints the commands.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/tpu_common.sh"

parse_options "$@"
run_on_tpu all --distributed "${arguments[@]}"
