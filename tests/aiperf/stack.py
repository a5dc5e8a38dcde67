"""One proxy and simulated engines that register with it, on ports that they take themselves."""

import json
import re
import signal
import time

from processes import Child, get, is_open, offline, wait_for

MODEL = "sim"
PREFILL, DECODE = 4, 2
# Engines as small as the trace: what its agents have together fits into all four caches, and not into one.
ENGINES = (
    f"--prefill {PREFILL} --decode {DECODE} --mode write --model {MODEL} --cache-tokens 60000 --prompt-tokens-details "
    "--prefill-rate 10000 --prefill-delay 5ms --token-delay 5ms --control-port 0"
).split()
PROXY = (
    f"--host 127.0.0.1 --port 0 --ping-port 0 --expect-prefill {PREFILL} --expect-decode {DECODE} "
    "--decode-token-budget exact --report-cached-tokens"
).split()
# Gauges and counts of an engine that are 0 once everything has come to its end.
LEFT = ("held", "leaked", "parked", "running", "waiting", "used_blocks", "frozen")
WRONG = ("violations", "kv_mismatch", "leaked_requests", "woken_empty", "died", "failed", "rejected", "aborted")
OK = 200


class Stack:
    def __init__(self, binary, options, folder):
        self.proxy = Child([binary, *PROXY, *options], folder / "proxy.log", env=offline())
        # Of the log only this line names ports: those that were free.
        self.address, registration = self._told(self.proxy, r" http=(\S+) registration=(\S+)")
        self.url = f"http://{self.address}"
        command = [binary, "sim", *ENGINES, "--registration", registration]
        self.engines = Child(command, folder / "engines.log", env=offline())
        (self.control,) = self._told(self.engines, r"^control (http\S+)")
        self.ports = [int(address.rsplit(":", 1)[1]) for address in (self.address, registration)]

    @staticmethod
    def _told(child, words):
        """What a child tells at its start; one that does not has failed."""
        found = wait_for(lambda: re.search(words, child.said(), re.M) or not child.alive(), 20)
        if not isinstance(found, re.Match):
            raise OSError(f"{child.log.name}: {child.said().strip()[-500:]}")
        return found.groups()

    def ready(self):
        """True once /ready is 200: every engine can be used."""
        return wait_for(lambda: get(f"{self.url}/ready")[0] == OK, 30)

    def metric(self, name):
        """The samples of one metric of the proxy, by their labels."""
        text = self._page(f"{self.url}/metrics")
        return {labels: int(value) for labels, value in re.findall(rf"^{name}(?:{{(.*)}})? (\d+)$", text, re.M)}

    def counted(self, name):
        """One counter of all engines together."""
        return sum(engine[name] for engine in self._counters())

    def left(self):
        """What is in flight or wrong, by name, once nothing more can come: nothing, if all is well."""
        wait_for(lambda: not self._in_flight(), 20)
        return {**self._in_flight(), **{name: count for name in WRONG if (count := self.counted(name))}}

    def _in_flight(self):
        names = ("moriio_requests_in_flight", "moriio_legs_in_flight", "moriio_parked_legs_in_flight")
        samples = [(f"{name} {labels}", count) for name in names for labels, count in self.metric(name).items()]
        gauges = [(name, self.counted(name)) for name in LEFT]
        return {name: count for name, count in samples + gauges if count}

    def _counters(self):
        return json.loads(self._page(f"{self.control}/counters")).values()

    @staticmethod
    def _page(url):
        status, text = get(url)
        if status != OK:
            raise OSError(f"{url}: {status} {text[:200]}")
        return text

    def stop(self):
        """SIGTERM to both: the proxy's exit code, and which of its ports are open nevertheless."""
        begun = time.monotonic()
        code = self.proxy.signal(signal.SIGTERM, 30)
        self.engines.signal(signal.SIGTERM, 10)
        still_open = [port for port in self.ports if is_open(port)]
        return code, still_open, time.monotonic() - begun
