#!/usr/bin/env bash
# A run on a TPU slice under Kubernetes, from the manifest gke.yaml or jobset.yaml:
#
#   launch/gke.sh --name=RUN --image=IMAGE --claim=VOLUME_CLAIM [--hosts=4] [--chips_per_host=4] \
#       [--accelerator=tpu-v5-lite-podslice] [--topology=4x4] [--spot] [--jobset] \
#       [--max_restarts=100] [--poll_seconds=30] [--dry_run] \
#       -- --config=configs/imagenet64.py --workdir=/shared/imagenet64
#   launch/gke.sh --name=RUN [--jobset] --delete
#
# Needs kubectl with a cluster that has such TPUs (Kubernetes 1.28 or newer), and an image with the
# package and its extra [tpu]: launch/Dockerfile makes one. The claim is mounted as /shared on all
# hosts. --spot asks for machines that may be preempted.
#
# Kubernetes starts pods that were preempted or lost another one again; a mistake of the user's
# (code 1) ends the run. With --jobset, which needs the JobSet controller in the cluster, all pods
# start again together, on a slice that no other job shares.
#
# Follows the log of process 0, through restarts, until the run is done or failed; the same command
# finds the run again. --dry_run prints the manifest. --delete removes the run's objects, also those
# of one that ended, before another of that name; what was learned lies on the claim.
set -euo pipefail
folder=$(dirname "${BASH_SOURCE[0]}")
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

manifest_options="name image claim hosts chips_per_host accelerator topology max_restarts"
options="$manifest_options spot jobset poll_seconds delete dry_run"
# shellcheck disable=SC2034 # Those of the manifest are read by name.
declare name="" image="" claim="" hosts=4 chips_per_host=4 accelerator=tpu-v5-lite-podslice \
    topology=4x4 max_restarts=100 spot=false jobset=false poll_seconds=30 delete=false dry_run=false

# The head of a Job or JobSet around the pod template, with the values of the options.
fill() { # $1: file
    local manifest pod option argument quoted="" lines='/ # --spot$/d'
    [[ $spot == false ]] || lines='s/ # --spot$//'
    manifest=$(< "$folder/$1")
    pod=$(sed "$lines" "$folder/pod.yaml")
    [[ $manifest =~ (' '+)@pod@ ]]
    manifest=${manifest//@pod@/"${pod//$'\n'/$'\n'"${BASH_REMATCH[1]}"}"}
    for option in $manifest_options; do
        manifest=${manifest//@$option@/"${!option}"}
    done
    for argument in "${arguments[@]}"; do # As JSON strings, which YAML reads.
        argument=${argument//\\/\\\\} argument=${argument//$'\n'/\\n}
        quoted+=", \"${argument//\"/\\\"}\""
    done
    echo "${manifest//@arguments@/"$quoted"}"
}

# The log of process 0, which alone speaks, until the run is done (0) or failed (1).
follow() {
    local ended pods pod="" phase="" followed="" since=1970-01-01T00:00:00Z
    while true; do
        ended=$(kubectl get "$kind" "$name" \
            --output='jsonpath={.status.conditions[?(@.status=="True")].type}')
        pods=$(kubectl get pods --sort-by=.metadata.creationTimestamp \
            --selector="$label=$name,batch.kubernetes.io/job-completion-index=0" \
            --output='jsonpath={range .items[*]}{.metadata.name} {.status.phase}{"\n"}{end}')
        read -r pod phase <<< "${pods##*$'\n'}" # The last is the newest.
        if [[ $phase == Running || -n $phase && $phase != Pending && $pod != "$followed" ]]; then
            kubectl logs --follow --since-time="$since" "$pod" || true # It may be gone by now.
            since=$(date -u +%Y-%m-%dT%H:%M:%SZ)
            followed=$pod
        fi
        case " $ended " in
            *" Complete "* | *" Completed "*) return 0 ;;
            *" Failed "*) fail "$name has failed: its log says why" ;;
        esac
        sleep "$poll_seconds"
    done
}

parse_options "$@"
require name
if [[ $jobset == true ]]; then
    kind=jobset kinds=jobset label=jobset.sigs.k8s.io/jobset-name
else
    kind=job kinds=job,service label=job-name
fi
if [[ $delete == true ]]; then
    run kubectl delete "$kinds" "$name"
    exit
fi
require image claim
require_count hosts
require_count chips_per_host
require_count max_restarts 0
require_count poll_seconds 0
[[ $topology =~ ^[0-9]+(x[0-9]+)+$ ]] || fail "--topology must be as 4x4 or 2x2x4, got $topology"
((${topology//x/*} == hosts * chips_per_host)) || fail "--topology=$topology must have as many chips \
as --hosts=$hosts times --chips_per_host=$chips_per_host"

file=gke.yaml
[[ $jobset == false ]] || file=jobset.yaml
manifest=$(fill "$file")
if [[ $dry_run == true ]]; then
    echo "$manifest"
    echo "# kubectl apply -f -"
else
    kubectl apply -f - <<< "$manifest"
    follow
fi
