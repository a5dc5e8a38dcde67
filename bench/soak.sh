#!/usr/bin/env bash
# soak.sh: long load on one proxy process, in every shape that has ever left something behind: whole answers, streams,
# and clients that hang up in the middle. At the end nothing may be in flight, no engine may have lost a block, and
# memory may not have grown.
#
# usage: bench/soak.sh [--help]       everything is set by environment variables:
#
#   BINARY          the proxy (target/release/moriio-proxy, built if missing)
#   DURATION        how long, as 90s, 10m, 2h (10m)
#   MODE            transfer mode of the engines: write or read (write)
#   POLICY          how engines are chosen, as --policy (round_robin)
#   CONNECTIONS     clients at once (64)
#   SAMPLE          seconds between two readings of memory, and length of one burst of load (10)
#   SETTLE_LIMIT    seconds until everything in flight has ended after the load (90)
#   GROWTH_LIMIT    MB the proxy may have grown since the end of the first tenth (16)
#   BASE_PORT       first of 40 free ports (22000)
#   IN_FLIGHT       pattern of the gauges in /metrics that have to be zero ('^[a-z_]*in_flight([{ ]|$)')
#   COUNTERS_URL    where the simulated engines report their counters (http://127.0.0.1:BASE_PORT+2/counters)
#   COUNTERS_ZERO   names of the counters that have to be zero
#
# exit code: 0; 1 if anything above does not hold or the proxy does not stop with code 0.

set -euo pipefail

bench_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=bench/common.sh
source "$bench_folder/common.sh"

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
fi
cd "$bench_folder/.."

: "${BINARY:=target/release/moriio-proxy}" "${DURATION:=10m}" "${MODE:=write}" "${POLICY:=round_robin}"
: "${CONNECTIONS:=64}" "${SAMPLE:=10}"
: "${SETTLE_LIMIT:=90}" "${GROWTH_LIMIT:=16}" "${BASE_PORT:=22000}"
: "${IN_FLIGHT:=^[a-z_]*in_flight([\{ ]|\$)}"
: "${COUNTERS_URL:=http://127.0.0.1:$((BASE_PORT + 2))/counters}"
: "${COUNTERS_ZERO:=leaked_requests leaked_blocks kv_mismatch woken_empty deaf died violations \
leaked held parked running waiting used_blocks frozen}"

proxy_port=$BASE_PORT
ping_port=$((BASE_PORT + 1))
control_port=$((BASE_PORT + 2))
engines=$((BASE_PORT + 8))
proxy_url=http://127.0.0.1:$proxy_port

work=$(mktemp -d)
trap 'stop_all; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

seconds_of() {
    [[ $1 =~ ^([0-9]+)([smh]?)$ ]] || fail "not a duration: '$1'"
    case ${BASH_REMATCH[2]} in
        m) printf '%s' "$((BASH_REMATCH[1] * 60))" ;;
        h) printf '%s' "$((BASH_REMATCH[1] * 3600))" ;;
        *) printf '%s' "${BASH_REMATCH[1]}" ;;
    esac
}

start_stage() {
    PROXY_HTTP_PORT=$proxy_port PROXY_PING_PORT=$ping_port PROXY_LOG_LEVEL=warn start "$work/proxy.log" "$BINARY" serve \
        --policy "$POLICY"
    proxy_pid=$started_pid
    wait_for "$proxy_url/health" "$proxy_pid" "$work/proxy.log"
    start "$work/sim.log" "$BINARY" sim --prefill 2 --decode 2 --mode "$MODE" --registration "127.0.0.1:$ping_port" \
        --http-port "$engines" --control-port "$control_port" --token-delay 1ms --ping-interval 1s
    sim_pid=$started_pid
    wait_for "$proxy_url/ready" "$sim_pid" "$work/sim.log"
    # Later, the counters decide over success: an address that does not answer must not wait for the end to be seen.
    wait_for "$COUNTERS_URL" "$sim_pid" "$work/sim.log"
}

require_stage() {
    if ! kill -0 "$proxy_pid" 2>/dev/null; then
        tail -n 20 "$work/proxy.log" >&2
        fail "the proxy ended"
    fi
    if ! kill -0 "$sim_pid" 2>/dev/null; then
        tail -n 20 "$work/sim.log" >&2
        fail "the simulated engines ended"
    fi
}

# One burst of load; every third one is clients that hang up in the middle of their streams.
burst() {
    local kind=$1 result requests failures
    case $kind in
        hang-up)
            hang_up_burst
            return 0
            ;;
        whole) write_body "$work/body" 1024 16 false ;;
        stream) write_body "$work/body" 4096 64 true ;;
    esac
    result=$(load "$proxy_url/v1/completions" "$work/body" "$CONNECTIONS" "$SAMPLE")
    read -r requests _ _ failures _ <<<"$result"
    ((failures == 0)) || fail "$failures of $requests requests failed in a burst of kind $kind"
    ((requests > 0)) || fail "nothing was answered in a burst of kind $kind"
    answered=$((answered + requests))
}

# wrk cuts its connections when its time is up, so short runs of long answers are all cut somewhere else.
hang_up_burst() {
    local until=$((SECONDS + SAMPLE)) pid tries=0
    write_body "$work/body" 4096 4000 true
    while ((SECONDS < until)); do
        BENCH_BODY=$work/body wrk --threads 1 --connections "$CONNECTIONS" --duration 60s --timeout 60s \
            --script "$bench_folder/wrk.lua" "$proxy_url/v1/completions" >/dev/null 2>&1 &
        pid=$!
        # From before prefill's answer to the middle of decode's.
        sleep "$(calculate "print 0.02 + ($tries % 7) * 0.1")"
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
        tries=$((tries + 1))
        cut=$((cut + CONNECTIONS))
    done
}

# in_flight: prints the sum of the gauges; fails if there are none, because then the pattern is wrong.
in_flight() {
    get "$proxy_url/metrics" | grep -v '^#' | grep -E -- "$IN_FLIGHT" |
        awk '{ total += $NF; lines++ } END { if (!lines) exit 1; print total }'
}

# policy_load: prints what policies believe that engines have to do, which has to be nothing at rest.
policy_load() {
    get "$proxy_url/ready" | python3 -c '
import json, sys

print(sum(engine["load"] for engine in json.load(sys.stdin)["engines"]))
'
}

# bad_counters: prints every counter that should be zero and is not, at any depth of the engines' report.
bad_counters() {
    get "$COUNTERS_URL" | python3 -c '
import json, sys

names = set(sys.argv[1].split())
seen = set()

def walk(value, path):
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in names and isinstance(inner, (int, float)):
                seen.add(name)
                if inner:
                    print(f"{path}{name}={inner}")
            else:
                walk(inner, f"{path}{name}.")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            walk(inner, f"{path}{index}.")

walk(json.load(sys.stdin), "")
if not seen:
    print("none of the counters is reported")
' "$COUNTERS_ZERO"
}

# settle: waits until both sides are at rest; prints what is left and fails if they never are.
settle() {
    local until=$((SECONDS + SETTLE_LIMIT)) left bad believed
    while true; do
        left=$(in_flight) || fail "no gauge of /metrics matches $IN_FLIGHT"
        bad=$(bad_counters) || fail "the counters at $COUNTERS_URL cannot be read"
        believed=$(policy_load) || fail "/ready does not say what engines have to do"
        if [[ $left == 0 && $believed == 0 && -z $bad ]]; then
            return 0
        fi
        if ((SECONDS >= until)); then
            get "$proxy_url/metrics" | grep -v '^#' | grep -E -- "$IN_FLIGHT" >&2 || true
            fail "not at rest after $SETTLE_LIMIT s: in flight $left, load $believed, counters ${bad//$'\n'/ }"
        fi
        sleep 1
    done
}

main() {
    local length end baseline='' resident kinds=(whole stream hang-up) round=0 grown
    require_tools wrk curl python3
    require_binary
    length=$(seconds_of "$DURATION")
    ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
    require_free_ports "$proxy_port" "$ping_port" "$control_port" "$engines"
    start_stage
    answered=0 cut=0
    printf 'soak: %s, mode %s, policy %s, %s clients\n' "$DURATION" "$MODE" "$POLICY" "$CONNECTIONS"
    SECONDS=0
    end=$length
    while ((SECONDS < end)); do
        burst "${kinds[round % 3]}"
        require_stage
        round=$((round + 1))
        resident=$(status_kb "$proxy_pid" VmRSS)
        printf '%6s s  %-8s resident %6s KB, in flight %4s, answered %8s, cut %6s\n' "$SECONDS" \
            "${kinds[(round - 1) % 3]}" "$resident" "$(in_flight || true)" "$answered" "$cut"
        # All three kinds have to have run once: what they need for good is no leak.
        if [[ -z $baseline ]] && ((round >= 3 && SECONDS * 10 >= length)); then
            baseline=$resident
        fi
    done
    settle
    resident=$(status_kb "$proxy_pid" VmRSS)
    grown=$(((resident - ${baseline:-$resident}) / 1024))
    ((grown <= GROWTH_LIMIT)) || fail "the proxy grew by $grown MB, from $baseline KB to $resident KB"
    stop_child "$proxy_pid"
    ((stopped_code == 0)) || fail "the proxy stopped with code $stopped_code"
    printf 'passed: %s answered, %s cut, nothing in flight, nothing leaked, grown by %s MB\n' "$answered" "$cut" "$grown"
}

main
