#!/usr/bin/env bash
# tests/verify against a proxy over simulated engines: what an operator runs on a cluster, on any machine.
#
#   on-a-laptop.sh read|write [ARGUMENTS FOR verify]
#
# MORIIO_PROXY is the binary (target/debug/moriio-proxy). All on loopback, on free ports; nothing stays behind.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binary=${MORIIO_PROXY:-$here/../../target/debug/moriio-proxy}
mode=${1:?read or write}
shift

work=$(mktemp -d)
children=()
finish() {
    kill "${children[@]}" 2>/dev/null || true
    wait
    rm -rf "$work"
}
trap finish EXIT

start() { # NAME ARGUMENTS...
    local name=$1
    shift
    "$binary" "$@" >"$work/$name" 2>&1 &
    children+=($!)
}

# The first match in a child's output, once it is there.
read_from() { # NAME PATTERN
    local try
    for try in {1..100}; do
        if grep -oPm1 "$2" "$work/$1"; then
            return 0
        fi
        sleep 0.1
    done
    printf '%s said no %s in %s s:\n' "$1" "$2" "$((try / 10))" >&2
    cat "$work/$1" >&2
    return 1
}

start proxy --host 127.0.0.1 --port 0 --ping-port 0 --decode-token-budget exact --engine-ttl 3s
proxy=$(read_from proxy 'http=\K[0-9.:]+')
registration=$(read_from proxy 'registration=\K[0-9.:]+')
start pair sim --mode "$mode" --registration "$registration" --control-port 0
start single sim --plain --prefill 0 --decode 1 --registration "$registration-not" --control-port 0
prefill=$(read_from pair '^prefill \Khttp://\S+')
decode=$(read_from pair '^decode \Khttp://\S+')
control=$(read_from pair '^control \Khttp://\S+')
single=$(read_from single '^decode \Khttp://\S+')
for _ in {1..100}; do
    curl -fs -o "$work/ready" "http://$proxy/ready" && break
    sleep 0.1
done

# Real engines are away for a minute; these are until the proxy, told to be quick, must have missed them.
again() { # NUMBER
    printf '%s && sleep 6 && %s' "curl -fsS -X POST $control/engines/$1/crash" "curl -fsS -X POST $control/engines/$1/restart"
}
python3 "$here" --proxy "http://$proxy" --single "$single" --prefill "$prefill" --decode "$decode" \
    --decode-token-budget exact \
    --restart-prefill "$(again 0)" --restart-decode "$(again 1)" "$@"
