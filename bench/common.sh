# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # names shared with the script that sources this file
# Functions of soak.sh: processes, ports, load, readings from /proc. Sourced, never run.

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

require_tools() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null 2>&1 || fail "$tool is missing (Debian: apt-get install wrk curl python3)"
    done
}

require_binary() {
    if [[ ! -x $BINARY ]]; then
        [[ $BINARY == target/release/moriio-proxy ]] || fail "$BINARY is not executable"
        cargo build --release --locked --bin moriio-proxy
    fi
    BINARY=$(realpath "$BINARY")
}

# Processes started here, in order; stop_all ends them in the reverse order.
children=()

stop_all() {
    local index pid
    for ((index = ${#children[@]} - 1; index >= 0; index--)); do
        pid=${children[index]}
        stop_child "$pid"
    done
    children=()
}

# Leaves the child's exit code in stopped_code.
stop_child() {
    local pid=$1 tries
    stopped_code=0
    kill -TERM "$pid" 2>/dev/null || true
    for ((tries = 0; tries < 450; tries++)); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || stopped_code=$?
}

# start LOG COMMAND...: in the background; the process id is left in started_pid.
start() {
    local log=$1
    shift
    "$@" </dev/null >"$log" 2>&1 &
    started_pid=$!
    children+=("$started_pid")
}

get() {
    curl --silent --show-error --fail --noproxy '*' --max-time 5 "$@"
}

# wait_for URL PID LOG: until 200; fails after 30 s or when the process has ended.
wait_for() {
    local tries
    for ((tries = 0; tries < 300; tries++)); do
        if get --output /dev/null "$1" 2>/dev/null; then
            return 0
        fi
        if ! kill -0 "$2" 2>/dev/null; then
            tail -n 20 "$3" >&2
            fail "the process behind $1 ended"
        fi
        sleep 0.1
    done
    tail -n 20 "$3" >&2
    get "$1" >&2 || true
    fail "no 200 from $1 within 30 s"
}

require_free_ports() {
    local port
    for port in "$@"; do
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            fail "port $port is taken; choose another BASE_PORT"
        fi
    done
}

# status_kb PID FIELD: a figure of /proc/PID/status in KB, summed over the process and its children.
status_kb() {
    local pid total=0 one
    for pid in "$1" $(cat "/proc/$1/task/$1/children" 2>/dev/null); do
        one=$(awk -v field="$2:" '$1 == field { print $2 }' "/proc/$pid/status")
        total=$((total + one))
    done
    printf '%s' "$total"
}

# write_body FILE PROMPT_BYTES TOKENS STREAM
write_body() {
    {
        printf '{"model":"sim-model","prompt":"'
        head -c "$2" /dev/zero | tr '\0' 'a'
        printf '","max_tokens":%s,"stream":%s}' "$3" "$4"
    } >"$1"
}

# load URL BODY CONNECTIONS SECONDS: prints requests, bytes, microseconds, failures, p50, p99.
load() {
    BENCH_BODY=$2 wrk --threads 1 --connections "$3" --duration "$4s" --timeout 60s --script "$bench_folder/wrk.lua" "$1" |
        awk '$1 == "summary" { print $2, $3, $4, $5, $6, $7 }'
}

calculate() {
    awk "BEGIN { $1 }"
}
