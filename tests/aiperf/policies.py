"""The policies, each with a proxy and engines of its own, and what has to be true of every replay."""

from dataclasses import dataclass

from processes import left_over
from replay import replay
from stack import Stack
from steps import Steps

OFF = ("--session-affinity", "off")


@dataclass
class Row:
    policy: str
    sessions_stay: bool

    @property
    def name(self):
        return self.policy if self.sessions_stay else f"{self.policy}, no sessions"

    @property
    def options(self):
        return ["--policy", self.policy, *(() if self.sessions_stay else OFF)]


BASELINE = Row("round_robin", False)
ROWS = [
    BASELINE,
    Row("round_robin", True),
    Row("least_loaded", True),
    Row("consistent_hash", True),
    Row("cache_aware", True),
    # Only so does it have to find the prefixes itself.
    Row("cache_aware", False),
]
# By how many points a row's hit rate has to be above the baseline's. That has half of all tokens by chance: engines soon
# have met every team's system prompt, and some turns their last one.
MARGIN = 10


def play(world, rows):
    """Every row that is named; the number of checks that failed."""
    steps, results = Steps(44), {}
    try:
        for row in rows:
            played(world, row, steps, results)
    finally:
        steps.take("nothing is left", nothing_left)
    compared(rows, results, steps)
    print(table(world, rows, results), flush=True)
    return steps.close(world.folder)


def nothing_left():
    """No process. Ports were looked at when each proxy stopped: minutes later a free one may be anybody's."""
    processes = left_over()
    return not processes, f"processes {processes}" if processes else ""


def played(world, row, steps, results):
    folder = world.folder / row.name.replace(", ", "-").replace(" ", "-")
    folder.mkdir()
    stacks = []

    def take(name, step):
        return steps.take(f"{row.name}: {name}", step)

    def starts():
        stacks.append(Stack(world.binary, row.options, folder))
        return stacks[0].ready(), " ".join(row.options)

    def is_replayed():
        results[row.name] = replay(world, stacks[0].url, folder)
        return all_answered(world.trace, results[row.name], stacks[0])

    try:
        if take("ready", starts):
            whole = take("all answered", is_replayed)
            take("nothing in flight", lambda: nothing_in_flight(stacks[0]))
            if whole:
                take("counts agree", lambda: counts_agree(results[row.name], stacks[0]))
                take("sessions", lambda: sessions_stay(world.trace, row, stacks[0]))
    finally:
        for stack in stacks:
            take("stops", lambda stack=stack: stops(stack))


def all_answered(trace, result, stack):
    """aiperf got every answer whole and as long as asked for, and the proxy says the same of every exchange."""
    ended = stack.metric("moriio_exchanges_total")
    there = (result.answered, result.failed, result.outputs, result.unlike)
    passed = there == (trace.requests, 0, trace.outputs, 0) and ended == {'ended="complete"': trace.requests}
    lengths = f"{result.outputs} of {trace.outputs} tokens, {result.unlike} of another length"
    return passed, f"{result.answered} of {trace.requests}, {result.failed} failed, {lengths}; proxy: {ended}"


def nothing_in_flight(stack):
    left = stack.left()
    return not left, str(left) if left else "nor held, leaked or out of place at engines"


def counts_agree(result, stack):
    """What was cached, by the engines, by prefill's answers, by the answers' usage and by what aiperf reads of /metrics."""
    (told,) = stack.metric("moriio_prefill_cached_tokens_total").values()
    prompts, cached = stack.counted("prompt_tokens"), stack.counted("cached_tokens")
    passed = {cached, told, result.cached_tokens, result.scraped_tokens} == {cached} and prompts == result.prompt_tokens
    answers = f"answers {result.cached_tokens} of {result.prompt_tokens}"
    return passed, f"engines {cached} of {prompts} tokens, {answers}, proxy {told}, as scraped {result.scraped_tokens}"


def sessions_stay(trace, row, stack):
    """Every turn but a session's first goes where the one before went, by the header that aiperf sends of itself."""
    picked = stack.metric("moriio_policy_decisions_total")
    stayed = picked.get('role="prefill",policy="session",reason="hit"', 0)
    wanted = trace.requests - len(trace.sessions) if row.sessions_stay else 0
    return stayed == wanted, f"{stayed} of {trace.requests} requests stayed, {wanted} wanted"


def stops(stack):
    code, still_open, seconds = stack.stop()
    return code == 0 and not still_open, f"exit code {code} after {seconds:.1f} s, ports open: {still_open}"


def compared(rows, results, steps):
    """Every row that keeps prefixes together is clearly above the one that does not."""
    for row in rows:
        if row != BASELINE:
            steps.take(f"{row.name}: hit rate", lambda row=row: is_above(results, row))


def is_above(results, row):
    here, base = results[row.name].hit_rate, results[BASELINE.name].hit_rate
    return here >= base + MARGIN, f"{here:.1f} %, {here - base:+.1f} to {BASELINE.name}, {MARGIN} wanted"


def table(world, rows, results):
    lines = ["| Policy | Sessions | Answered | Hit rate | TTFT p50 | p99 |", "|---|---|---|---|---|---|"]
    for row in rows:
        found = results.get(row.name)
        numbers = ["–"] * 4
        if found:
            answered = f"{100 * found.answered / world.trace.requests:.4g} % of {world.trace.requests}"
            numbers = (answered, f"{found.hit_rate:.1f} %", f"{found.p50:.0f} ms", f"{found.p99:.0f} ms")
        lines.append(f"| `{row.policy}` | {'stay' if row.sessions_stay else 'off'} | {' | '.join(numbers)} |")
    return "\n".join(["", *lines, ""])
