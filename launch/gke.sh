#!/usr/bin/env bash
# A run on a TPU slice under Kubernetes, from the manifest gke.yaml:
#
#   launch/gke.sh --name=RUN --image=IMAGE --claim=VOLUME_CLAIM [--hosts=4] [--chips_per_host=4] \
#       [--accelerator=tpu-v5-lite-podslice] [--topology=4x4] [--max_restarts=100] [--dry_run] \
#       -- --config=configs/imagenet64.py --workdir=/shared/imagenet64
#   launch/gke.sh --name=RUN --delete
#
# Needs kubectl with a cluster that has such TPUs. The image has the package and its extra [tpu]
# installed; the claim is mounted as /shared on all hosts. Kubernetes starts pods that were
# preempted or lost another one again; a mistake of the user's (code 1) ends the job. Follows the
# log of the run; --dry_run prints the manifest, and --delete removes job and service. What was
# learned lies on the claim.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

manifest_options="name image claim hosts chips_per_host accelerator topology max_restarts"
options="$manifest_options delete dry_run"
# shellcheck disable=SC2034 # Those of the manifest are read by name.
declare name="" image="" claim="" hosts=4 chips_per_host=4 \
    accelerator=tpu-v5-lite-podslice topology=4x4 max_restarts=100 delete=false dry_run=false
parse_options "$@"
require name
if [[ $delete == true ]]; then
    run kubectl delete job,service "$name"
    exit
fi
require image claim
require_count hosts
require_count chips_per_host

manifest=$(< "$(dirname "${BASH_SOURCE[0]}")/gke.yaml")
for option in $manifest_options; do
    manifest=${manifest//@$option@/${!option}}
done
quoted=""
for argument in "${arguments[@]}"; do # As JSON strings, which YAML reads.
    argument=${argument//\\/\\\\}
    quoted+=", \"${argument//\"/\\\"}\""
done
manifest=${manifest//@arguments@/"$quoted"}
if [[ $dry_run == true ]]; then
    echo "$manifest"
    echo "# kubectl apply -f -"
else
    kubectl apply -f - <<< "$manifest"
    kubectl logs --follow --pod-running-timeout=1h "job/$name"
fi
