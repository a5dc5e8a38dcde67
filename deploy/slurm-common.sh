# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this file read these names
# Functions shared by slurm-rank0.sh and slurm-peer.sh. Sourced, never run.

# Exit codes of both scripts, beside the ones passed on from engine and benchmark.
readonly EXIT_SETTINGS=2
readonly EXIT_TIMEOUT=124

say() {
    printf '%s %s: %s\n' "$(date +%H:%M:%S)" "${0##*/}" "$*" >&2
}

die() {
    local code=$1
    shift
    say "fatal: $*"
    exit "$code"
}

# Prints the comment block at the top of a script, which is its help.
print_help() {
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$1"
}

require_command() {
    command -v "$1" >/dev/null 2>&1 || die "$EXIT_SETTINGS" "$1 is not installed or not executable"
}

# require_number NAME...: each named variable holds a number of seconds; fractions are fine.
require_number() {
    local name
    for name in "$@"; do
        [[ ${!name} =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "$EXIT_SETTINGS" "$name is not a number: '${!name}'"
    done
}

# require_port NAME...: each named variable holds a TCP port.
require_port() {
    local name
    for name in "$@"; do
        if ! [[ ${!name} =~ ^[0-9]{1,5}$ ]] || ((10#${!name} < 1 || 10#${!name} > 65535)); then
            die "$EXIT_SETTINGS" "$name is not a port: '${!name}'"
        fi
    done
}

# Sleeps so that a signal is handled at once: bash runs a trap only after a foreground child has ended. The child
# gives up our descriptors, or it would hold a caller's pipe open after we are gone.
pause() {
    sleep "$1" >/dev/null 2>&1 &
    wait "$!" || true
}

now_milliseconds() {
    local now=${EPOCHREALTIME/[.,]/}
    printf '%s' "$((now / 1000))"
}

# deadline_after SECONDS: prints the moment at which a wait ends; `expired` compares with it.
deadline_after() {
    local span
    span=$(awk -v seconds="$1" 'BEGIN { printf "%d", seconds * 1000 }')
    printf '%s' "$(($(now_milliseconds) + span))"
}

expired() {
    (($(now_milliseconds) >= $1))
}

# Bash reaps its children by itself, so an ended child is unknown to kill.
is_running() {
    kill -0 "$1" 2>/dev/null
}

# http_status URL: prints the status of a GET, 000 if there is none, late if it takes more than two seconds, as it may on
# a busy node. Redirects are not followed, and proxies named in the environment are not used.
http_status() {
    local status code=0
    status=$(curl --silent --output /dev/null --noproxy '*' --max-time 2 --write-out '%{http_code}' "$1" 2>/dev/null) || code=$?
    if ((code == 28)); then printf late; else printf '%s' "$status"; fi
}

http_ok() {
    [[ $(http_status "$1") == 200 ]]
}

# probe_port HOST PORT: prints open, closed or silent (no answer within two seconds: a lost packet or a busy node).
probe_port() {
    local code=0
    # shellcheck disable=SC2016 # the inner shell expands its own arguments
    timeout 2 bash -c 'exec 3<>"/dev/tcp/$1/$2"' probe "$1" "$2" </dev/null >/dev/null 2>&1 || code=$?
    case $code in
        0) printf open ;;
        124) printf silent ;;
        *) printf closed ;;
    esac
}

# start_group LOG COMMAND: runs a shell command in a process group of its own (engines fork workers; all of them have
# to be stopped), without our descriptors. The group's id is left in started_pid.
start_group() {
    local log=$1 command=$2
    setsid bash -c "$command" </dev/null >"$log" 2>&1 &
    started_pid=$!
}

# True while a group has a member that runs. A dead member that nobody reaps (process 1 of a container may not) is
# still known to kill, but has nothing left to stop.
group_runs() {
    kill -0 -- "-$1" 2>/dev/null || return 1
    cat /proc/[0-9]*/stat 2>/dev/null |
        awk -v group="$1" '{ sub(/^.*\) /, "") } $3 == group && $1 != "Z" { found = 1 } END { exit !found }'
}

# stop_group PID NAME LIMIT: SIGTERM to the group, SIGKILL after LIMIT seconds. Members may outlive their leader.
stop_group() {
    local pid=$1 name=$2 deadline
    # A child that has just been started may not have its group yet.
    kill -TERM -- "-$pid" 2>/dev/null || kill -TERM "$pid" 2>/dev/null || return 0
    deadline=$(deadline_after "$3")
    while is_running "$pid" || group_runs "$pid"; do
        if expired "$deadline"; then
            say "$name did not stop within $3 s, killed"
            kill -KILL -- "-$pid" 2>/dev/null || true
            return 0
        fi
        pause 0.2
    done
    say "$name stopped"
}

# show_log FILE: the last lines of a log, so that the job's output names the cause.
show_log() {
    [[ -s $1 ]] || return 0
    say "last lines of $1:"
    tail -n 20 "$1" >&2
}
