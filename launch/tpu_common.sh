# shellcheck shell=bash disable=SC2034
# A run on a TPU VM: find or create, install, start, follow, start again after preemption.

options="name zone type project version source python spot max_restarts delete dry_run"
name="" zone="" type="" project="" version=tpu-ubuntu2204-base source=. python=python3.11
spot=false max_restarts=100 delete=false dry_run=false
folder=guided_distill # on the workers, with the code, the log and main's exit code

tpu() { run gcloud compute tpus tpu-vm "$@" --zone="$zone" ${project:+--project="$project"}; }

on_workers() { tpu ssh "$name" --worker="$1" --command="$2"; }

# The slice's state, ABSENT where there is none.
find_state() {
    if [[ $dry_run == true ]]; then
        tpu describe "$name" --format="value(state)" >&2
        echo ABSENT
    else
        tpu describe "$name" --format="value(state)" 2> /dev/null || echo ABSENT
    fi
}

create() {
    local extra=()
    [[ $spot == false ]] || extra=(--spot)
    tpu create "$name" --accelerator-type="$type" --version="$version" "${extra[@]}"
}

# A preempted slice cannot be started again: it is deleted, and created anew.
make_ready() {
    local state
    state=$(find_state)
    case $state in
        READY | CREATING) ;;
        ABSENT) create ;;
        PREEMPTED | TERMINATED)
            tpu delete "$name" --quiet
            create
            ;;
        *) fail "$name is $state: look at it, then start again" ;;
    esac
}

install() { # $1: workers
    tpu scp --recurse "$source/." "$name:$folder" --worker="$1"
    on_workers "$1" "cd $folder && sudo apt-get install -y -q $python-venv && \
$python -m venv venv && venv/bin/python -m pip install -q -e '.[tpu]'"
}

# Main goes on where this terminal does not; its log and exit code stay on the workers.
start() { # $1: workers, $2…: main's arguments
    local workers=$1
    shift
    local main="venv/bin/python -m guided_distill.main ${*@Q}; echo \$? > exit_code"
    on_workers "$workers" "cd $folder && rm -f exit_code && { nohup bash -c ${main@Q} \
> log.txt 2>&1 < /dev/null & echo \$! > pid; }"
}

# Worker 0's log until main ends, then its exit code; 143 where the worker went away.
follow() {
    on_workers 0 "cd $folder && tail -n +1 -F --pid=\$(cat pid) log.txt; exit \$(cat exit_code || echo 143)"
}

run_on_tpu() { # $1: workers, $2…: main's arguments
    if [[ $delete == true ]]; then
        require name zone
        tpu delete "$name" --quiet
        return
    fi
    require name zone type
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
    done
    return "$code"
}
