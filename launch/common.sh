# shellcheck shell=bash disable=SC2034
# What the launchers share: their options, their errors, and what --dry_run does.

fail() {
    echo "error: $1" >&2
    exit 1
}

# The comment at the top of the launcher.
usage() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; }

# Sets the variables that `options` names from --name=value (or --name, which means true). What
# comes after -- is main's, and lands in `arguments`.
parse_options() {
    local key value
    arguments=()
    while (($#)); do
        case $1 in
            --)
                shift
                arguments=("$@")
                return
                ;;
            --help)
                usage
                exit 0
                ;;
            --*=*)
                key=${1%%=*}
                value=${1#*=}
                ;;
            --*)
                key=$1
                value=true
                ;;
            *) fail "unexpected argument $1: options are written --name=value, main's come after --" ;;
        esac
        key=${key#--}
        # shellcheck disable=SC2154 # The launcher sets `options`.
        [[ " $options " == *" $key "* ]] || fail "unknown option --$key: those of main come after --"
        printf -v "$key" %s "$value"
        shift
    done
}

# Refuses options that are empty.
require() {
    local key
    for key in "$@"; do
        [[ -n ${!key} ]] || fail "--$key is missing: see --help"
    done
}

# Refuses an option that is no whole number from 1.
require_count() { [[ ${!1} =~ ^[1-9][0-9]*$ ]] || fail "--$1 must be a whole number from 1, got ${!1}"; }

# Runs a command, or prints it where --dry_run was given.
run() {
    # shellcheck disable=SC2154 # The launcher sets `dry_run`.
    if [[ $dry_run == true ]]; then
        printf "%q " "$@"
        echo
    else
        "$@"
    fi
}
