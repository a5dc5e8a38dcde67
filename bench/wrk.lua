-- Request and summary of a burst, for wrk. BENCH_BODY names a file with the request body, BENCH_PATH the route. The last line of
-- the output is for scripts: summary requests bytes microseconds failures p50 p99 (latencies in microseconds).

local file = assert(io.open(os.getenv("BENCH_BODY"), "rb"))
wrk.method = "POST"
wrk.path = os.getenv("BENCH_PATH") or "/v1/completions"
wrk.headers["Content-Type"] = "application/json"
wrk.body = file:read("*a")
file:close()

function done(summary, latency)
    local errors = summary.errors
    local failures = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format("summary %d %d %d %d %d %d\n", summary.requests, summary.bytes, summary.duration, failures,
        latency:percentile(50), latency:percentile(99)))
end
