#!/usr/bin/env bash
# slurm-rank0.sh: what rank 0 of a Slurm job runs. Starts the proxy, then this node's prefill engine, waits until all
# are healthy, runs the benchmark, and stops the proxy, whose closed port tells the other ranks to stop (slurm-peer.sh).
#
# usage: slurm-rank0.sh [--help]      everything is set by environment variables:
#
#   ENGINE_COMMAND       shell command of this node's prefill engine; empty: no engine here
#   BENCHMARK_COMMAND    shell command to run once all is healthy; required
#   ENGINE_URLS          blank-separated base URLs of all engines, for example "http://node0:2584 http://node1:2584"
#   MORIIO_PROXY_BINARY  the proxy (moriio-proxy)
#   PROXY_HTTP_PORT      its client port (30000);        PROXY_PING_PORT  its registration port (36367)
#   LOG_DIR              logs of proxy and engine (TMPDIR/moriio-proxy-JOBID)
#   START_LIMIT          seconds until the proxy's first answer (30)
#   BARRIER_LIMIT        seconds until everything is healthy (3600)
#   BARRIER_INTERVAL     seconds between two rounds of probes (1)
#   WAIT_FOR_READY       1: also wait until the proxy's /ready is 200, that is a usable pair has registered (1)
#   READY_LIMIT          seconds for that (300)
#   BENCHMARK_LIMIT      seconds for the benchmark (86400)
#   STOP_LIMIT           seconds for the proxy's stop; more than its drain timeout of 25 s (30)
#   ENGINE_STOP_LIMIT    seconds for the engine's stop, then it is killed (30)
#
# Any other PROXY_... variable reaches the proxy unchanged.
#
# exit code: the benchmark's; if that is 0, the proxy's (3: streams were cut at the end); 1 if proxy or engine ended or
# turned unhealthy before the benchmark was over; 124 if a wait took too long; 2 for a bad setting; 128 + signal.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=deploy/slurm-common.sh
source "$here/slurm-common.sh"

load_settings() {
    : "${ENGINE_COMMAND:=}" "${BENCHMARK_COMMAND:=}" "${ENGINE_URLS:=}"
    : "${MORIIO_PROXY_BINARY:=moriio-proxy}" "${PROXY_HTTP_PORT:=30000}" "${PROXY_PING_PORT:=36367}"
    : "${LOG_DIR:=${TMPDIR:-/tmp}/moriio-proxy-${SLURM_JOB_ID:-$$}}"
    : "${START_LIMIT:=30}" "${BARRIER_LIMIT:=3600}" "${BARRIER_INTERVAL:=1}"
    : "${WAIT_FOR_READY:=1}" "${READY_LIMIT:=300}" "${BENCHMARK_LIMIT:=86400}"
    : "${STOP_LIMIT:=30}" "${ENGINE_STOP_LIMIT:=30}"
    export PROXY_HTTP_PORT PROXY_PING_PORT
    [[ -n $BENCHMARK_COMMAND ]] || die "$EXIT_SETTINGS" "BENCHMARK_COMMAND is not set (see --help)"
    require_port PROXY_HTTP_PORT PROXY_PING_PORT
    require_number START_LIMIT BARRIER_LIMIT BARRIER_INTERVAL READY_LIMIT BENCHMARK_LIMIT STOP_LIMIT \
        ENGINE_STOP_LIMIT
    require_command curl
    require_command setsid
    require_command "$MORIIO_PROXY_BINARY"
    mkdir -p "$LOG_DIR"
    local host=${PROXY_HOST:-0.0.0.0}
    case $host in
        0.0.0.0 | ::) host=127.0.0.1 ;;
        *:*) host="[$host]" ;;
    esac
    proxy_url=http://$host:$PROXY_HTTP_PORT
    proxy_log=$LOG_DIR/proxy.log
    engine_log=$LOG_DIR/engine-rank0.log
}

proxy_pid='' engine_pid='' benchmark_pid='' started_pid=''

# Whatever happens, nothing that was started here stays behind.
clean_up() {
    local code=$?
    trap - EXIT
    trap '' INT TERM
    [[ -z $benchmark_pid ]] || stop_group "$benchmark_pid" benchmark 5
    if [[ -n $proxy_pid ]]; then
        stop_proxy || true
    fi
    [[ -z $engine_pid ]] || stop_group "$engine_pid" engine "$ENGINE_STOP_LIMIT"
    exit "$code"
}

start_proxy() {
    # A shell that replaces itself: $! is the proxy, not a wrapper and not a `tee` at the end of a pipe, and no pipe of
    # ours is inherited. The log is a file for the same reason.
    (exec "$MORIIO_PROXY_BINARY" serve </dev/null >"$proxy_log" 2>&1) &
    proxy_pid=$!
    local deadline
    deadline=$(deadline_after "$START_LIMIT")
    # Any answer will do: with PROXY_HEALTH_WAITS_FOR_PAIR the 200 comes after the engines, which start after this.
    until [[ $(http_status "$proxy_url/health") =~ ^[1-9] ]]; do
        require_alive
        ! expired "$deadline" || die "$EXIT_TIMEOUT" "no answer from $proxy_url/health within $START_LIMIT s"
        pause 0.1
    done
    say "proxy runs as process $proxy_pid, clients on $PROXY_HTTP_PORT, registration on $PROXY_PING_PORT"
}

start_engine() {
    [[ -n $ENGINE_COMMAND ]] || return 0
    start_group "$engine_log" "$ENGINE_COMMAND"
    engine_pid=$started_pid
    say "engine runs as process group $engine_pid, log $engine_log"
}

# Ends the job when the proxy or this node's engine is gone.
require_alive() {
    require_child "$proxy_pid" "the proxy" "$proxy_log"
    [[ -z $engine_pid ]] || require_child "$engine_pid" "the engine" "$engine_log"
}

require_child() {
    ! is_running "$1" || return 0
    local code=0
    wait "$1" || code=$?
    show_log "$3"
    die 1 "$2 ended with code $code before the job was over"
}

# Passes when everything answered 200 in one and the same round. What was healthy may be late, but not gone or unwell.
pass_barrier() {
    local -A was_healthy=()
    local -a urls=("$proxy_url/health")
    local url status deadline missing
    for url in $ENGINE_URLS; do
        urls+=("${url%/}/health")
    done
    deadline=$(deadline_after "$BARRIER_LIMIT")
    while true; do
        missing=()
        for url in "${urls[@]}"; do
            status=$(http_status "$url")
            if [[ $status == 200 ]]; then
                was_healthy[$url]=1
            elif [[ -n ${was_healthy[$url]:-} && $status != late ]]; then
                require_alive
                die 1 "$url was healthy and is not any more: $status"
            else
                missing+=("$url")
            fi
        done
        require_alive
        ((${#missing[@]} > 0)) || break
        ! expired "$deadline" || die "$EXIT_TIMEOUT" "not healthy within $BARRIER_LIMIT s: ${missing[*]}"
        pause "$BARRIER_INTERVAL"
    done
    say "barrier passed: ${#urls[@]} of ${#urls[@]} healthy"
}

wait_for_pair() {
    [[ $WAIT_FOR_READY == 1 ]] || return 0
    local deadline
    deadline=$(deadline_after "$READY_LIMIT")
    until http_ok "$proxy_url/ready"; do
        require_alive
        if expired "$deadline"; then
            curl --silent --noproxy '*' --max-time 2 "$proxy_url/ready" >&2 || true
            die "$EXIT_TIMEOUT" "no usable pair of engines within $READY_LIMIT s"
        fi
        pause "$BARRIER_INTERVAL"
    done
    say "a pair of engines is ready"
}

# Leaves the benchmark's exit code in benchmark_code. Its output is ours; an engine that dies meanwhile ends the job at
# once instead of leaving the benchmark to its own time limit.
run_benchmark() {
    local deadline
    setsid bash -c "$BENCHMARK_COMMAND" </dev/null &
    benchmark_pid=$!
    deadline=$(deadline_after "$BENCHMARK_LIMIT")
    while is_running "$benchmark_pid"; do
        require_alive
        ! expired "$deadline" || die "$EXIT_TIMEOUT" "the benchmark took longer than $BENCHMARK_LIMIT s"
        pause 0.2
    done
    benchmark_code=0
    wait "$benchmark_pid" || benchmark_code=$?
    stop_group "$benchmark_pid" "what the benchmark left behind" 5
    benchmark_pid=''
    say "benchmark ended with code $benchmark_code"
}

# Leaves the proxy's exit code in proxy_code. The port closes at once, open streams are drained.
stop_proxy() {
    local pid=$proxy_pid deadline
    kill -TERM "$pid" 2>/dev/null || true
    deadline=$(deadline_after "$STOP_LIMIT")
    while is_running "$pid"; do
        if expired "$deadline"; then
            say "the proxy did not stop within $STOP_LIMIT s, killed"
            kill -KILL "$pid" 2>/dev/null || true
            break
        fi
        pause 0.1
    done
    proxy_code=0
    wait "$pid" || proxy_code=$?
    proxy_pid=''
    say "proxy ended with code $proxy_code"
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
    start_proxy
    start_engine
    pass_barrier
    wait_for_pair
    run_benchmark
    stop_proxy
    if ((benchmark_code != 0)); then
        exit "$benchmark_code"
    fi
    exit "$proxy_code"
}

main "$@"
