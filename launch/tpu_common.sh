# shellcheck shell=bash disable=SC2034
# A run on a TPU VM: find or create, install, start, follow, start again after preemption.

options="name zone type project version source python spot queued poll_seconds max_restarts delete \
dry_run"
name="" zone="" type="" project="" version="" source=. python=python3.11 spot=false queued=false
poll_seconds=30 max_restarts=100 delete=false dry_run=false
folder=guided_distill # on the workers, with the code, the log and main's exit code

slices() { run gcloud compute tpus tpu-vm "$@" --zone="$zone" ${project:+--project="$project"}; }

requests() {
    run gcloud compute tpus queued-resources "$@" --zone="$zone" ${project:+--project="$project"}
}

on_workers() { slices ssh "$name" --worker="$1" --command="$2"; }

# The software that TPUs of a type start with, where --version does not name it.
choose_version() {
    [[ -z $version ]] || return 0
    case $type in
        v5litepod-* | v5e*) version=v2-alpha-tpuv5-lite ;;
        v5p-*) version=v2-alpha-tpuv5 ;;
        v6e-*) version=v2-alpha-tpuv6e ;;
        v[234]-*) version=tpu-ubuntu2204-base ;;
        *) fail "no runtime version is known for --type=$type: name one with --version=RUNTIME" ;;
    esac
}

# The state of what $1 (slices, requests) calls by this name: ABSENT where there is none, UNKNOWN
# where that cannot be asked.
find_state() { # $2: the field
    local answer
    if [[ $dry_run == true ]]; then
        "$1" describe "$name" --format="value($2)" >&2
        echo ABSENT
    elif answer=$("$1" describe "$name" --format="value($2)" 2> "$scratch/trouble"); then
        echo "$answer"
    elif grep -q NOT_FOUND "$scratch/trouble"; then
        echo ABSENT
    else
        echo UNKNOWN
    fi
}

fail_unknown() { fail "the state of $name is not known: $(head -n 1 "$scratch/trouble")"; }

create_slice() {
    slices create "$name" --accelerator-type="$type" --version="$version" "${spot_option[@]}"
}

# A preempted slice cannot be started again: it is deleted, and created anew.
make_slice_ready() {
    local state
    while state=$(find_state slices state) && [[ $state == CREATING ]]; do sleep "$poll_seconds"; done
    case $state in
        READY) ;;
        ABSENT) create_slice ;;
        PREEMPTED | TERMINATED)
            slices delete "$name" --quiet
            create_slice
            ;;
        UNKNOWN) fail_unknown ;;
        *) fail "$name is $state: look at it, then start again" ;;
    esac
}

create_request() {
    requests create "$name" --node-id="$name" --accelerator-type="$type" \
        --runtime-version="$version" "${spot_option[@]}"
}

delete_request() { requests delete "$name" --force --quiet; } # --force: with its slice.

# Waits until the request is granted, which may take days; one whose slice was preempted is made anew.
make_request_ready() {
    local state last=""
    while true; do
        state=$(find_state requests state.state)
        [[ $state == "$last" || $dry_run == true ]] || echo "$name is $state" >&2
        case $state in
            ACTIVE) return ;;
            ABSENT) create_request ;;
            SUSPENDING | SUSPENDED)
                delete_request
                create_request
                ;;
            FAILED) fail "the request $name failed: read why with gcloud compute tpus \
queued-resources describe $name --zone=$zone${project:+ --project=$project}, delete it with --queued --delete, then start again" ;;
            UNKNOWN) [[ -n $last ]] || fail_unknown ;; # Days hold an hour without network.
        esac
        [[ $dry_run == false ]] || return 0
        last=$state
        sleep "$poll_seconds"
    done
}

make_ready() { if [[ $queued == true ]]; then make_request_ready; else make_slice_ready; fi; }

# Packs --source without history, results, environments, caches and builds. Tars differ in how they
# anchor a pattern, and a package may have its own runs/: so what lies at the top is named, and
# patterns are for what may lie anywhere.
pack() { # $1: archive
    local entry members=()
    for entry in "$source"/* "$source"/.[!.]*; do
        case ${entry##*/} in
            .git | runs | venv | .venv | build | dist | *.egg-info | __pycache__ | .*_cache) continue ;;
        esac
        [[ -e $entry || -L $entry ]] || continue # A pattern that fits nothing.
        [[ -e $entry/pyvenv.cfg ]] || members+=("./${entry##*/}")
    done
    # macOS adds ._ files otherwise.
    run env COPYFILE_DISABLE=1 tar -czf "$1" --exclude=__pycache__ --exclude='*.egg-info' \
        --exclude=.ipynb_checkpoints -C "$source" "${members[@]}"
}

install() { # $1: workers
    local archive=$scratch/guided_distill.tar.gz
    pack "$archive"
    slices scp "$archive" "$name:guided_distill.tar.gz" --worker="$1"
    on_workers "$1" "mkdir -p $folder && tar -xzf guided_distill.tar.gz -C $folder && cd $folder && \
sudo apt-get install -y -q $python-venv && $python -m venv venv && \
venv/bin/python -m pip install -q -e \".[tpu]\""
}

# Main goes on where this terminal does not; its log and exit code stay on the workers.
start() { # $1: workers, $2…: main's arguments
    local workers=$1 main="venv/bin/python -m guided_distill.main" argument
    shift
    for argument in "$@"; do main+=" $(quote "$argument")"; done
    on_workers "$workers" "cd $folder && rm -f exit_code && { (trap \"\" HUP; $main; \
echo \$? > exit_code) > log.txt 2>&1 < /dev/null & echo \$! > pid; }"
}

# Worker 0's log until main ends, then its exit code; 143 where the worker went away.
follow() {
    on_workers 0 "cd $folder && tail -n +1 -F --pid=\$(cat pid) log.txt; exit \$(cat exit_code || echo 143)"
}

run_on_tpu() { # $1: workers, $2…: main's arguments
    if [[ $delete == true ]]; then
        require name zone
        if [[ $queued == true ]]; then delete_request; else slices delete "$name" --quiet; fi
        return
    fi
    require name zone type
    require_count poll_seconds 0
    require_count max_restarts 0
    choose_version
    source=${source/#\~\//$HOME/}
    [[ -f $source/setup.py ]] || fail "--source=$source holds no setup.py: name the project's folder"
    spot_option=()
    [[ $spot == false ]] || spot_option=(--spot)
    scratch=${TMPDIR:-/tmp}
    if [[ $dry_run == false ]]; then
        scratch=$(mktemp -d)
        trap 'rm -rf "$scratch"' EXIT
    fi
    local code restart
    for ((restart = 0; restart <= max_restarts; restart++)); do
        make_ready
        install "$1"
        start "$@"
        code=0
        follow || code=$?
        case $code in
            0 | 1 | 130) return "$code" ;; # Done, a mistake, stopped by hand.
        esac
        echo "main ended with code $code: the same command goes on" >&2
        sleep "$poll_seconds" # A state is told late.
    done
    return "$code"
}
