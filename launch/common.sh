# shellcheck shell=bash disable=SC2034
# What the launchers share: their options, their errors, and what --dry_run does.

fail() {
    echo "error: $1" >&2
    exit 1
}

# Older ones take an empty list for an unset variable.
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
    fail "the launchers need bash 4.4 or newer, this is $BASH_VERSION"

# The comment at the top of the launcher.
usage() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; }

# Sets the variables that `options` names from --name=value; --name alone is for switches, whose
# default is true or false. What comes after -- is main's, and lands in `arguments`.
parse_options() {
    local key value switch
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
            --*) key=${1%%=*} ;;
            *) fail "unexpected argument $1: options are written --name=value, main's come after --" ;;
        esac
        key=${key#--}
        # shellcheck disable=SC2154 # The launcher sets `options`.
        [[ " $options " == *" $key "* ]] || fail "unknown option --$key: those of main come after --"
        [[ ${!key} == true || ${!key} == false ]] && switch=true || switch=false
        value=${1#*=}
        [[ $1 == *=* ]] || value=true
        [[ $switch == true || $1 == *=* ]] || fail "--$key needs a value: --$key=…"
        [[ $switch == false || $value == true || $value == false ]] ||
            fail "--$key is a switch, on or left out, got $value"
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

# Refuses an option that is no whole number from 1, or from what $2 says.
require_count() {
    [[ ${!1} =~ ^(0|[1-9][0-9]*)$ && ${!1} -ge ${2:-1} ]] ||
        fail "--$1 must be a whole number from ${2:-1}, got ${!1}"
}

# A word as the shell reads it back: bare where it can be, else in single quotes; of name=value the
# value alone.
quote() {
    local name="" value=$1 mark="'" inside="'\\''"
    if [[ $1 =~ ^([A-Za-z0-9_.-]+=)(.*)$ ]]; then
        name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    fi
    [[ $name$value =~ ^[A-Za-z0-9_./:,@%+=-]+$ ]] || value="'${value//$mark/"$inside"}'"
    printf %s "$name$value"
}

# Prints a command to read and to paste: on one line, or where that is long, each option on its own.
show() {
    local word short="" long="" line="" width=100
    for word in "$@"; do
        word=$(quote "$word")
        short+="${short:+ }$word"
        if [[ -n $line && ($word == -* || $((${#line} + ${#word})) -ge $width) ]]; then
            long+="$line "$'\\\n'
            line="    $word"
        else
            line+="${line:+ }$word"
        fi
    done
    if ((${#short} <= width)); then echo "$short"; else echo "$long$line"; fi
}

# Runs a command, or prints it where --dry_run was given.
run() {
    # shellcheck disable=SC2154 # The launcher sets `dry_run`.
    if [[ $dry_run == true ]]; then show "$@"; else "$@"; fi
}
