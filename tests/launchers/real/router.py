"""The binary under the name vllm-router, started and stopped as two launchers do it. Only addresses and ports are others."""

import os
import re
import shlex
import signal
import time

from processes import Child, free_ports, get, is_open, offline, run, wait_for

CONNECTOR = "--vllm-pd-disaggregation --kv-connector moriio"
POLICIES = "--policy round_robin --prefill-policy round_robin --decode-policy round_robin"
# MAD waits 300 s for these lines and then goes on without them; engines register every 3 s.
ADD_LIMIT = 60
# How the router calls an exchange that its client got whole.
WELL = "complete"


class Router:
    """One start of the router. Its HTTP port is new each time; engines know only the port for registration."""

    def __init__(self, binary, registration, folder):
        self.registration, self.folder, self.child = registration, folder, None
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.path = folder / "bin"
        self.path.mkdir(exist_ok=True)
        link = self.path / "vllm-router"
        link.unlink(missing_ok=True)
        link.symlink_to(binary)
        # A login shell sets PATH anew, so the link's folder must be named where such a shell looks.
        (folder / ".bash_profile").write_text(f'PATH="{self.path}:$PATH"\n')
        path = f"{self.path}:{os.environ['PATH']}"
        self.environment = {**offline(), "HOME": str(folder), "PATH": path}

    def as_vllm_ci(self, ranks):
        """What vLLM's CI has its container run, before there is any engine."""
        self.log = self.folder / "vllm_router.log"
        log = shlex.quote(str(self.log))
        line = (
            f"exec vllm-router {CONNECTOR} --vllm-discovery-address 127.0.0.1:{self.registration} --port {self.port} "
            f"--host 127.0.0.1 --intra-node-data-parallel-size {ranks} {POLICIES} --log-level info > {log} 2>&1"
        )
        # A container starts with a PATH of its own image, not with the caller's.
        self.child = Child(["bash", "-lc", line], self.folder / "container.log", env=self.environment)
        return line

    def as_mad(self, ranks, prefill, decode):
        """What MAD's connectors/moriio.sh runs in the prefill master's container, once engines are up."""
        self.log = self.folder / "vllm_router_NODE0.log"
        (prometheus,) = free_ports(1)
        more = f"--moriio-dp-size {ranks} " if "--moriio-dp-size" in self.help() else ""
        line = (
            f"vllm-router --host 127.0.0.1 --port {self.port} {CONNECTOR} --prefill {prefill} --decode {decode} "
            f"--vllm-discovery-address 127.0.0.1:{self.registration} --intra-node-data-parallel-size {ranks} "
            f"{more}{POLICIES} --log-level info --prometheus-port {prometheus}"
        )
        script = f"exec {line} > >(tee {shlex.quote(str(self.log))} >/dev/null) 2>&1"
        self.child = Child(["bash", "-c", script], self.folder / "driver.log", env=self.environment)
        return line

    def help(self):
        return run(["vllm-router", "--help"], self.folder / "help.log", 20, env=self.environment)[1]

    def comes_up(self):
        """True when its port is open, false when it ended or is late."""
        wait_for(lambda: is_open(self.port) or not self.child.alive(), 20)
        return self.child.alive() and is_open(self.port)

    def told(self):
        """All that it has said, by whichever file it said it into."""
        return (self.log.read_text(errors="replace") if self.log.exists() else "") + self.child.said()

    def exchanges(self):
        """What its log says of each exchange, in order; one of several answers is there beside each of its siblings."""
        lines = re.findall(r"^\S+ +INFO exchange: (.*)$", self.told(), re.M)
        return [dict(re.findall(r'(\w+)=("[^"]*"|\S+)', line)) for line in lines]

    def registered(self):
        """MAD's gate: both lines in its log, looked for every 5 s. Which of them are missing at the end."""
        words = ("Add Prefill", "Add Decode")
        wait_for(lambda: all(word in self.told() for word in words), ADD_LIMIT, 5)
        return [word for word in words if word not in self.told()]

    def killed(self):
        """`docker rm -f`. Seconds until neither port is open; None when one still is."""
        return self._gone(signal.SIGKILL)[1]

    def terminated(self):
        """SIGTERM, after which other nodes wait for the port to close: exit code, and seconds until then."""
        return self._gone(signal.SIGTERM)

    def _gone(self, number):
        begun = time.monotonic()
        code = self.child.signal(number, 60)
        closed = wait_for(lambda: not is_open(self.port) and not is_open(self.registration), 5)
        return code, time.monotonic() - begun if closed else None

    def counts(self):
        """Exchanges by how they ended, and attempts beyond the first: what the router itself says of what it served."""
        status, text = get(f"{self.url}/metrics")
        if status != 200:
            raise OSError(f"/metrics of the router: {status} {text[:200]}")
        ended = re.findall(r'^moriio_exchanges_total\{ended="(\w+)"\} (\d+)', text, re.M)
        repeated = re.findall(r"^moriio_attempts_total\{[^}]*\} (\d+)", text, re.M)
        return {**{name: int(count) for name, count in ended}, "repeated": sum(map(int, repeated))}


def grown(before, after):
    """What counts have become more by, those that have not left out."""
    return {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}
