#!/usr/bin/env bash
# run.sh: what the proxy costs, beside nginx in the same run on the same simulated engines. See bench/README.md.
#
# usage: bench/run.sh [--help]        everything is set by environment variables:
#
#   BINARY     the proxy (target/release/moriio-proxy, built if missing)
#   SCENES     exchange chunk paced large static, and pool latency idle (the first five)
#   MODE       transfer mode of the engines: write or read (write)
#   QUICK      1: short rounds, for a first look (0)
#   ROUNDS     measured rounds of each relay, taken in turn (3; quick 1)
#   SECONDS_A_ROUND   length of one round (8; quick 2)
#   BASE_PORT  first of 40 free ports (21000)
#   STRICT     1: exit with 3 if a target is missed (0)
#
# exit code: 0; 1 if anything failed, including a single request; 3 see STRICT.

set -euo pipefail

bench_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=bench/common.sh
source "$bench_folder/common.sh"

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
fi
cd "$bench_folder/.."

: "${BINARY:=target/release/moriio-proxy}" "${SCENES:=exchange chunk paced large static}" "${MODE:=write}"
: "${QUICK:=0}" "${BASE_PORT:=21000}" "${STRICT:=0}"
if [[ $QUICK == 1 ]]; then
    : "${ROUNDS:=1}" "${SECONDS_A_ROUND:=2}"
else
    : "${ROUNDS:=3}" "${SECONDS_A_ROUND:=8}"
fi

proxy_port=$BASE_PORT
ping_port=$((BASE_PORT + 1))
relay_port=$((BASE_PORT + 2))
mirror_port=$((BASE_PORT + 3))
plain_engines=$((BASE_PORT + 4))
pool_engines=$((BASE_PORT + 8))
ticks_a_second=$(getconf CLK_TCK)
missed=0

work=$(mktemp -d)
trap 'stop_all; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

write_nginx_configuration() {
    mkdir -p "$work/nginx"
    cat >"$work/nginx.conf" <<CONF
$( ((EUID != 0)) || printf 'user root;')
daemon off;
worker_processes auto;
pid $work/nginx/pid;
error_log stderr warn;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path $work/nginx/body;
    proxy_temp_path $work/nginx/proxy;
    fastcgi_temp_path $work/nginx/fastcgi;
    uwsgi_temp_path $work/nginx/uwsgi;
    scgi_temp_path $work/nginx/scgi;
    client_max_body_size 16m;
    client_body_buffer_size 1m;
    keepalive_requests 100000000;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_buffering off;
    proxy_read_timeout 300s;
    upstream prefill {
        server 127.0.0.1:$plain_engines;
        server 127.0.0.1:$((plain_engines + 1));
        keepalive 1024;
        keepalive_requests 100000000;
    }
    upstream decode {
        server 127.0.0.1:$((plain_engines + 2));
        server 127.0.0.1:$((plain_engines + 3));
        keepalive 1024;
        keepalive_requests 100000000;
    }
    server {
        listen 127.0.0.1:$relay_port;
        location / { proxy_pass http://decode; }
    }
    server {
        listen 127.0.0.1:$mirror_port;
        location / { mirror /mirror; proxy_pass http://decode; }
        location = /mirror { internal; proxy_pass http://prefill\$request_uri; }
    }
}
CONF
}

# start_plain TOKEN_DELAY: plain engines for nginx.
start_plain() {
    # They have nobody to register with: port 1 is never open.
    start "$work/plain.log" "$BINARY" sim --plain --prefill 2 --decode 2 --mode "$MODE" --registration 127.0.0.1:1 \
        --http-port "$plain_engines" --token-delay "$1" --prefill-delay 0 --ping-interval 60s
    wait_for "http://127.0.0.1:$plain_engines/health" "$started_pid" "$work/plain.log"
    wait_for "http://127.0.0.1:$((plain_engines + 3))/health" "$started_pid" "$work/plain.log"
}

start_nginx() {
    start "$work/nginx.log" nginx -p "$work/nginx" -c "$work/nginx.conf" -e stderr
    nginx_pid=$started_pid
    wait_for "http://127.0.0.1:$relay_port/health" "$nginx_pid" "$work/nginx.log"
}

# start_proxy TOKEN_DELAY ENGINES_A_ROLE [SIM OPTIONS...]: the proxy and its pool.
start_proxy() {
    local delay=$1 each=$2
    shift 2
    PROXY_HTTP_PORT=$proxy_port PROXY_PING_PORT=$ping_port start "$work/proxy.log" "$BINARY" serve
    proxy_pid=$started_pid
    wait_for "http://127.0.0.1:$proxy_port/health" "$proxy_pid" "$work/proxy.log"
    start "$work/pool.log" "$BINARY" sim --prefill "$each" --decode "$each" --mode "$MODE" \
        --registration "127.0.0.1:$ping_port" --http-port "$pool_engines" --token-delay "$delay" --prefill-delay 0 \
        --ping-interval 1s "$@"
    wait_for "http://127.0.0.1:$proxy_port/ready" "$started_pid" "$work/pool.log"
    # All engines, not only the first pair.
    sleep 2
}

# sample_stream URL BODY: leaves bytes and chunks of one streamed answer, as they are on the wire.
sample_stream() {
    get --include --raw --header 'Content-Type: application/json' --data-binary "@$2" --max-time 60 \
        "$1" >"$work/sample"
    sample_bytes=$(stat -c %s "$work/sample")
    sample_chunks=$(grep -c '^data:' "$work/sample") || fail "no chunk in the answer of $1"
}

# measure UNIT URL BODY CONNECTIONS PID: one round; adds to cpu_sum[URL] and unit_sum[URL].
declare -A cpu_sum unit_sum
measure() {
    local unit=$1 url=$2 body=$3 connections=$4 pid=$5 before after result requests bytes failures units
    before=$(cpu_ticks "$pid")
    result=$(load "$url" "$body" "$connections" "$SECONDS_A_ROUND")
    after=$(cpu_ticks "$pid")
    read -r requests bytes _ failures _ <<<"$result"
    ((failures == 0)) || fail "$failures of $requests requests failed at $url"
    units=$requests
    # By bytes, because the answers cut at the end of a round have cost their share as well.
    [[ $unit == exchange ]] || units=$(calculate "printf \"%d\", $bytes * ${chunks[$url]} / ${stream_bytes[$url]}")
    ((units > 0)) || fail "nothing was answered at $url"
    cpu_sum[$url]=$((${cpu_sum[$url]:-0} + after - before))
    unit_sum[$url]=$((${unit_sum[$url]:-0} + units))
}

# microseconds URL: CPU time per unit.
microseconds() {
    calculate "printf \"%.1f\", ${cpu_sum[$1]} * 1000000 / $ticks_a_second / ${unit_sum[$1]}"
}

proxy_url=http://127.0.0.1:$proxy_port/v1/completions
relay_url=http://127.0.0.1:$relay_port/v1/completions
mirror_url=http://127.0.0.1:$mirror_port/v1/completions

heading() {
    printf '%-46s %12s %12s %12s %9s %10s\n' "$@"
}

# row NAME PROXY RELAY MIRROR RATIO TARGET: the ratio is judged against the target when both are numbers.
row() {
    local verdict=''
    if [[ $5 != - && $6 != - ]]; then
        verdict=$(calculate "print ($5 <= $6) ? \"met\" : \"MISSED\"")
        [[ $verdict == met ]] || missed=$((missed + 1))
    fi
    printf '%-46s %12s %12s %12s %9s %10s  %s\n' "$1" "$2" "$3" "$4" "$5" "$6" "$verdict"
}

# compare NAME UNIT BODY CONNECTIONS TARGET: proxy, relay and mirror in turn, so that a slow moment hits all of them.
declare -A chunks stream_bytes
compare() {
    local name=$1 unit=$2 body=$3 connections=$4 target=$5 round url ours theirs
    cpu_sum=() unit_sum=()
    for url in "$proxy_url" "$relay_url" "$mirror_url"; do
        if [[ $unit == chunk ]]; then
            sample_stream "$url" "$body"
            chunks[$url]=$sample_chunks
            stream_bytes[$url]=$sample_bytes
        fi
        load "$url" "$body" "$connections" 1 >"$work/warm"
    done
    for ((round = 0; round < ROUNDS; round++)); do
        measure "$unit" "$proxy_url" "$body" "$connections" "$proxy_pid"
        measure "$unit" "$relay_url" "$body" "$connections" "$nginx_pid"
        measure "$unit" "$mirror_url" "$body" "$connections" "$nginx_pid"
    done
    ours=$(microseconds "$proxy_url")
    theirs=$(microseconds "$mirror_url")
    row "$name" "$ours us" "$(microseconds "$relay_url") us" "$theirs us" \
        "$(calculate "printf \"%.2f\", $ours / ($theirs > 0 ? $theirs : 0.1)")" "$target"
}

scene_exchange() {
    start_plain 0
    start_nginx
    start_proxy 0 2
    write_body "$work/body" 1024 16 false
    compare "CPU per exchange, 1 KB, 16 tokens, C=64" exchange "$work/body" 64 1.5
}

scene_chunk() {
    start_plain 0
    start_nginx
    start_proxy 0 2
    write_body "$work/body" 1024 256 true
    compare "CPU per chunk, streamed without delay, C=32" chunk "$work/body" 32 1.3
}

scene_paced() {
    start_plain 20ms
    start_nginx
    start_proxy 20ms 2
    write_body "$work/body" 1024 64 true
    compare "CPU per chunk, paced 20 ms, C=64" chunk "$work/body" 64 1.2
}

scene_large() {
    local connections=16 rest peak
    start_plain 0
    start_nginx
    start_proxy 0 2
    write_body "$work/body" $((512 * 1024)) 16 false
    rest=$(status_kb "$proxy_pid" VmRSS)
    compare "CPU per exchange, 512 KB, 16 tokens, C=$connections" exchange "$work/body" "$connections" 2
    peak=$(($(status_kb "$proxy_pid" VmHWM) - rest))
    row "peak memory above rest / bodies in flight" "$peak KB" - - \
        "$(calculate "printf \"%.2f\", $peak / ($connections * 512)")" 1.2
}

# The same exchange on a large pool: the cost must not grow with the number of engines and ranks.
scene_pool() {
    local small large
    write_body "$work/body" 1024 16 false
    start_proxy 0 2
    small=$(proxy_alone)
    stop_all
    start_proxy 0 16 --dp 8
    large=$(proxy_alone)
    row "CPU per exchange, 16P16D dp 8 against 2P2D" "$large us" - "$small us" \
        "$(calculate "printf \"%.2f\", $large / $small")" 1.1
}

proxy_alone() {
    local round
    cpu_sum=() unit_sum=()
    load "$proxy_url" "$work/body" 64 1 >"$work/warm"
    for ((round = 0; round < ROUNDS; round++)); do
        measure exchange "$proxy_url" "$work/body" 64 "$proxy_pid"
    done
    microseconds "$proxy_url"
}

# One token, one connection: the answer's latency is the time to the first token.
scene_latency() {
    local url p50 target=100
    local -A median
    [[ $MODE == write ]] || target=150
    start_plain 0
    start_nginx
    start_proxy 0 2
    write_body "$work/body" 1024 1 true
    local direct_url=http://127.0.0.1:$((plain_engines + 2))/v1/completions
    for url in "$direct_url" "$proxy_url" "$relay_url" "$mirror_url"; do
        load "$url" "$work/body" 1 1 >"$work/warm"
        read -r _ _ _ _ p50 _ <<<"$(load "$url" "$work/body" 1 "$SECONDS_A_ROUND")"
        median[$url]=$p50
    done
    row "added time to first token, C=1, median" "$((median[$proxy_url] - median[$direct_url])) us" \
        "$((median[$relay_url] - median[$direct_url])) us" "$((median[$mirror_url] - median[$direct_url])) us" \
        "$((median[$proxy_url] - median[$direct_url]))" "$target"
}

scene_idle() {
    local before after
    start_proxy 0 2
    before=$(cpu_ticks "$proxy_pid")
    sleep 20
    after=$(cpu_ticks "$proxy_pid")
    local each
    each=$(calculate "printf \"%.1f\", ($after - $before) * 1000 / $ticks_a_second / 20")
    row "CPU a second, idle, four engines pinging" "$each ms" - - "$each" 1
}

# Size, start and rest need no load.
scene_static() {
    local rest size start_time
    start "$work/nginx.log" nginx -p "$work/nginx" -c "$work/nginx.conf" -e stderr
    nginx_pid=$started_pid
    start_proxy 0 2
    rest=$(calculate "printf \"%.1f\", $(status_kb "$proxy_pid" VmRSS) / 1024")
    row "resident at rest" "$rest MB" "$(calculate "printf \"%.1f\", $(status_kb "$nginx_pid" VmRSS) / 1024") MB" - \
        "$rest" 12
    stop_all
    size=$(calculate "printf \"%.1f\", $(stat -c %s "$BINARY") / 1048576")
    row "binary" "$size MB" - - "$size" 12
    start_time=$(for _ in 1 2 3 4 5; do time_start; done | sort -n | sed -n 3p)
    row "start to first /health 200, median of 5" "$start_time ms" - - "$start_time" 50
}

# Prints the milliseconds from start to the first 200. No curl here: starting it would cost more than what is measured.
time_start() {
    local begin now status=''
    begin=${EPOCHREALTIME/[.,]/}
    PROXY_HTTP_PORT=$proxy_port PROXY_PING_PORT=$ping_port start "$work/proxy.log" "$BINARY" serve
    while [[ $status != *' 200 '* ]]; do
        now=${EPOCHREALTIME/[.,]/}
        if ((now - begin > 10000000)); then
            stop_child "$started_pid"
            fail "no /health 200 within 10 s"
        fi
        if { exec 3<>"/dev/tcp/127.0.0.1/$proxy_port"; } 2>/dev/null; then
            printf 'GET /health HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n' >&3
            read -r -t 2 status <&3 || status=''
            exec 3>&-
        fi
    done
    now=${EPOCHREALTIME/[.,]/}
    calculate "printf \"%.1f\n\", ($now - $begin) / 1000"
    stop_child "$started_pid"
}

main() {
    local scene
    require_tools nginx wrk curl getconf
    require_binary
    for scene in $SCENES; do
        declare -F "scene_$scene" >/dev/null || fail "unknown scene '$scene' (see --help)"
    done
    write_nginx_configuration
    ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
    printf 'moriio-proxy beside nginx, mode %s, %s cores, %s rounds of %s s\n\n' "$MODE" "$(nproc)" "$ROUNDS" \
        "$SECONDS_A_ROUND"
    heading figure moriio-proxy nginx nginx-mirror ratio target
    for scene in $SCENES; do
        require_free_ports "$proxy_port" "$ping_port" "$relay_port" "$mirror_port" "$plain_engines" "$pool_engines"
        "scene_$scene"
        stop_all
    done
    printf '\n'
    if ((missed > 0)); then
        printf '%s of the targets missed\n' "$missed"
        [[ $STRICT != 1 ]] || exit 3
    fi
}

main
