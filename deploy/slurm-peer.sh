#!/usr/bin/env bash
# slurm-peer.sh: what every rank but 0 of a Slurm job runs. Starts this node's engine, waits until the proxy's port on
# rank 0 is open, then knocks on it; once it is closed the job is over and the engine is stopped.
#
# usage: slurm-peer.sh [--help]       everything is set by environment variables:
#
#   ENGINE_COMMAND     shell command of this node's engine; required
#   RANK0_HOST         host name or address of rank 0; required
#   PROXY_HTTP_PORT    the proxy's client port there (30000)
#   LOG_DIR            the engine's log (TMPDIR/moriio-proxy-JOBID)
#   PORT_OPEN_LIMIT    seconds until the port is open (3600)
#   WATCH_INTERVAL     seconds between two knocks (5)
#   WATCH_SILENCE      knocks in a row without any answer that count as closed; a refused one counts at once (3)
#   JOB_LIMIT          seconds for the whole job, then the engine is stopped all the same (86400)
#   ENGINE_STOP_LIMIT  seconds for the engine's stop, then it is killed (30)
#
# exit code: 0 if the engine was stopped because the job is over; the engine's own if it ended before (1 if that was 0);
# 124 if a wait took too long; 2 for a bad setting; 128 + signal.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=deploy/slurm-common.sh
source "$here/slurm-common.sh"

load_settings() {
    : "${ENGINE_COMMAND:=}" "${RANK0_HOST:=}" "${PROXY_HTTP_PORT:=30000}"
    : "${LOG_DIR:=${TMPDIR:-/tmp}/moriio-proxy-${SLURM_JOB_ID:-$$}}"
    : "${PORT_OPEN_LIMIT:=3600}" "${WATCH_INTERVAL:=5}" "${WATCH_SILENCE:=3}"
    : "${JOB_LIMIT:=86400}" "${ENGINE_STOP_LIMIT:=30}"
    [[ -n $ENGINE_COMMAND ]] || die "$EXIT_SETTINGS" "ENGINE_COMMAND is not set (see --help)"
    [[ -n $RANK0_HOST ]] || die "$EXIT_SETTINGS" "RANK0_HOST is not set (see --help)"
    require_port PROXY_HTTP_PORT
    require_number PORT_OPEN_LIMIT WATCH_INTERVAL JOB_LIMIT ENGINE_STOP_LIMIT
    [[ $WATCH_SILENCE =~ ^[1-9][0-9]*$ ]] || die "$EXIT_SETTINGS" "WATCH_SILENCE is not a count: '$WATCH_SILENCE'"
    require_command setsid
    require_command timeout
    mkdir -p "$LOG_DIR"
    engine_log=$LOG_DIR/engine-rank${SLURM_PROCID:-$$}.log
}

engine_pid='' started_pid=''

clean_up() {
    local code=$?
    trap - EXIT
    trap '' INT TERM
    [[ -z $engine_pid ]] || stop_group "$engine_pid" engine "$ENGINE_STOP_LIMIT"
    exit "$code"
}

require_engine() {
    is_running "$engine_pid" && return 0
    local code=0
    wait "$engine_pid" || code=$?
    show_log "$engine_log"
    ((code != 0)) || code=1
    die "$code" "the engine ended before the job was over"
}

wait_for_port() {
    local deadline
    deadline=$(deadline_after "$PORT_OPEN_LIMIT")
    until [[ $(probe_port "$RANK0_HOST" "$PROXY_HTTP_PORT") == open ]]; do
        require_engine
        ! expired "$deadline" ||
            die "$EXIT_TIMEOUT" "$RANK0_HOST:$PROXY_HTTP_PORT did not open within $PORT_OPEN_LIMIT s"
        pause "$WATCH_INTERVAL"
    done
    say "$RANK0_HOST:$PROXY_HTTP_PORT is open"
}

watch_port() {
    local deadline silent=0
    deadline=$(deadline_after "$JOB_LIMIT")
    while true; do
        require_engine
        case $(probe_port "$RANK0_HOST" "$PROXY_HTTP_PORT") in
            open) silent=0 ;;
            closed) return 0 ;;
            *) silent=$((silent + 1)) ;;
        esac
        ((silent < WATCH_SILENCE)) || return 0
        ! expired "$deadline" || die "$EXIT_TIMEOUT" "the job took longer than $JOB_LIMIT s"
        pause "$WATCH_INTERVAL"
    done
}

main() {
    case ${1:-} in
        '') ;;
        -h | --help)
            print_help "${BASH_SOURCE[0]}"
            return 0
            ;;
        *) die "$EXIT_SETTINGS" "unknown argument '$1' (see --help)" ;;
    esac
    load_settings
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    start_group "$engine_log" "$ENGINE_COMMAND"
    engine_pid=$started_pid
    say "engine runs as process group $engine_pid, log $engine_log"
    wait_for_port
    watch_port
    say "$RANK0_HOST:$PROXY_HTTP_PORT is closed, the job is over"
}

main "$@"
