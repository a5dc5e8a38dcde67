"""What engines tell of themselves: blocks held, requests at work, when they were started."""

import re
import time

from ask import Server

_BLOCKS = re.compile(r'num_gpu_blocks="(\d+)"')
_TOKENS = re.compile(r'^vllm:generation_tokens_total\{[^}]*\bengine="(\d+)"[^}]*\} (\S+)', re.M)


class Engine:
    """One vLLM engine, by the address the proxy knows it under."""

    def __init__(self, role, url):
        self.role, self.server = role, Server(url)
        self.name = f"{role} {self.server.host}:{self.server.port}"

    def metrics(self):
        status, text = self.server.get("/metrics")
        if status != 200:
            raise OSError(f"{self.name}: /metrics answers {status}")
        return text

    def alive(self):
        try:
            return self.server.get("/health", 5)[0] == 200
        except OSError:
            return False

    def started(self):
        """When its process began, by its own word; None while it does not answer."""
        try:
            return _sum(self.metrics(), "process_start_time_seconds")
        except OSError:
            return None

    def held(self):
        """KV blocks in use, over all its ranks. The gauge moves only when the engine takes a step."""
        text = self.metrics()
        blocks = [int(number) for number in _BLOCKS.findall(text)]
        if not blocks:
            raise OSError(f"{self.name}: /metrics does not tell num_gpu_blocks")
        return round(_sum(text, "vllm:kv_cache_usage_perc") * blocks[0])

    def tokens(self):
        """Tokens made so far, by data-parallel rank."""
        tokens = {f"{self.name} rank {rank}": float(tokens) for rank, tokens in _TOKENS.findall(self.metrics())}
        if not tokens:
            raise OSError(f"{self.name}: /metrics does not tell tokens by rank")
        return tokens

    def busy(self):
        """Requests it runs or keeps waiting."""
        text = self.metrics()
        return round(_sum(text, "vllm:num_requests_running") + _sum(text, "vllm:num_requests_waiting"))


def _sum(text, name):
    lines = [line for line in text.splitlines() if line.startswith((name + "{", name + " "))]
    if not lines:
        raise OSError(f"/metrics has no {name}")
    return sum(float(line.split()[-1]) for line in lines)


class Cluster:
    """The engines behind a proxy. `nudge` says who makes them take the step that refreshes their gauges: the proxy, with
    one-block exchanges, or a plain request to each engine, which releases before 0.24.0 do not survive."""

    def __init__(self, proxy, prefill, decode, model, nudge):
        self.proxy, self.model, self.nudge_by = proxy, model, nudge
        self.engines = [Engine("prefill", url) for url in prefill] + [Engine("decode", url) for url in decode]
        self.turns = 2 * max(len(prefill), len(decode))

    def _nudge(self):
        body = {"model": self.model, "prompt": "a b c", "max_tokens": 2, "temperature": 0}
        if self.nudge_by == "proxy":
            for _ in range(self.turns):
                self.proxy.ask("/v1/completions", body, 30)
        else:
            for engine in self.engines:
                engine.server.ask("/v1/completions", body, 30)
        time.sleep(0.3)

    def held(self):
        """Blocks held on every engine after a nudge; an engine that does not answer counts as dead, with -1."""
        self._nudge()
        return [self._held(engine) for engine in self.engines]

    @staticmethod
    def _held(engine):
        try:
            return engine.held()
        except OSError:
            return -1

    def at_rest(self):
        """The most that is held when nothing runs: with nudges by the proxy that may be a nudge's own block."""
        looks = [self.held() for _ in range(3)]
        return [max(column) for column in zip(*looks)]

    def tokens(self):
        """Tokens made so far, by rank of each engine."""
        return {rank: tokens for engine in self.engines for rank, tokens in engine.tokens().items()}

    def settle(self, rest, limit):
        """Seconds until nothing more is held or at work than `rest`, and what was held at the last look."""
        begun = time.monotonic()
        while True:
            held = self.held()
            busy = [engine.busy() if now >= 0 else -1 for engine, now in zip(self.engines, held)]
            clean = all(0 <= now <= before for now, before in zip(held, rest)) and not any(busy)
            seconds = time.monotonic() - begun
            if clean or seconds > limit:
                return clean and seconds <= limit, seconds, self.describe(held, busy)
            time.sleep(0.5)

    def describe(self, held, busy):
        """`prefill 0+0, decode 3+1`: blocks held and requests at work."""
        return ", ".join(
            f"{engine.role} {'dead' if now < 0 else f'{now}+{work}'}"
            for engine, now, work in zip(self.engines, held, busy)
        )

    def starts(self):
        return [engine.started() for engine in self.engines]
