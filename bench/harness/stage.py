"""Engines and the relays in front of them, started together and ended together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness import install, machine
from harness.subjects import Command, Engines, Kit, command

LOWEST_PORT, HIGHEST_PORT = 12000, 32000
PATIENCE = 60
# Nice values of who goes before a relay, and of who gives way to it.
AHEAD, BEHIND = -20, 19


class Failed(Exception):
    """A measurement that is none: requests failed, or a process ended."""


class Ports:
    """Blocks of ports that are free, each given out once in a while."""

    def __init__(self) -> None:
        self.next = LOWEST_PORT

    def take(self, count: int) -> list[int]:
        for _ in range(2 * (HIGHEST_PORT - LOWEST_PORT) // count):
            if self.next + count > HIGHEST_PORT:
                self.next = LOWEST_PORT
            ports = list(range(self.next, self.next + count))
            self.next += count
            if all(map(_is_free, ports)):
                return ports
        raise Failed(f"no {count} free ports between {LOWEST_PORT} and {HIGHEST_PORT}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


PORTS = Ports()


def status(port: int, path: str) -> int:
    """The status of a GET; 0 if there is no answer."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as stream:
            stream.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
            line = stream.recv(64).split()
            return int(line[1]) if len(line) > 1 else 0
    except OSError:
        return 0


@dataclass
class Running:
    """A process started here."""

    name: str
    process: subprocess.Popen
    port: int
    log: Path
    setup: Command | None = None

    @property
    def pids(self) -> list[int]:
        return machine.children(self.process.pid)

    def require(self) -> None:
        if self.process.poll() is not None:
            raise Failed(f"{self.name} ended with {self.process.returncode}: {self.log.read_text()[-800:]}")


class Stage:
    """For one scene. Everything is ended when it is left, whatever happens."""

    def __init__(self, kit: Kit, names: list[str], *, each: int = 2, dp: int = 1, token_delay: int = 0,
                 stamped: bool = False, workers: int = 1, ping_ms: int = 1000, wrapper: list[str] | None = None) -> None:
        self.kit, self.names, self.each, self.dp, self.token_delay = kit, names, each, dp, token_delay
        self.stamped, self.workers, self.ping_ms, self.wrapper = stamped, workers, ping_ms, wrapper or []
        self.relays: dict[str, Running] = {}
        self.engines: Running | None = None

    def __enter__(self) -> "Stage":
        self.folder = Path(tempfile.mkdtemp(prefix="moriio-bench-"))
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, setup: Command, wrapper: list[str] | tuple = ()) -> Running:
        log = self.folder / f"{name}.log"
        # The proxy's own variables would change what is measured.
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PROXY_")}
        with open(log, "wb") as out:
            process = subprocess.Popen([*wrapper, *setup.line], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                       env=clean | setup.environment)
        return Running(name, process, setup.port, log, setup)

    def _start(self) -> None:
        ports = PORTS.take(2 * self.each * (1 + 2 * self.dp))
        self.http = Engines(ports[:self.each], ports[self.each:2 * self.each])
        setups = {name: command(self.kit, name, self.http, PORTS.take(3), self.folder, self.workers)
                  for name in self.names if name != "direct"}
        for name, setup in setups.items():
            self.relays[name] = self.start(name, setup, self.wrapper)
        line = [str(self.kit.get("moriio-bench")), "engines", f"--prefill={self.each}", f"--decode={self.each}",
                f"--dp={self.dp}", f"--port={ports[0]}", f"--token-delay={self.token_delay}",
                f"--ping-interval={self.ping_ms}"]
        line += [f"--register={setup.mode}:127.0.0.1:{setup.registration}" for setup in setups.values() if setup.mode]
        # Where chunks are stamped, nobody may delay engines; what they do for large bodies gives way to all others.
        first = ["nice", f"-n{AHEAD}"] if self.stamped else []
        self.engines = self.start("engines", Command(line + ["--stamped"] * self.stamped, ports[0]), first)
        for name in self.names:
            self.await_answer(name)
        if any(name.startswith("vllm-router") for name in self.names):
            # It serves from the first pair on; the others have told it of themselves a ping later.
            time.sleep(1.5)

    def port(self, name: str) -> int:
        return self.http.decode[0] if name == "direct" else self.relays[name].port

    def await_answer(self, name: str) -> None:
        """Until a request is answered, and until a proxy knows all engines."""
        until = time.monotonic() + PATIENCE
        seen: object = None
        while time.monotonic() < until:
            (self.relays.get(name) or self.engines).require()
            if not name.startswith("moriio") or status(self.port(name), "/ready") == 200:
                seen = load(self.kit, self.port(name), requests=1, tokens=1, seconds=PATIENCE)
                if seen["requests"] and not seen["failures"]:
                    return
            time.sleep(0.05)
        said = self.relays[name].log.read_text()[-800:] if name in self.relays else ""
        raise Failed(f"{name} does not answer: {seen} {said}")

    def stop(self) -> None:
        running = [*self.relays.values(), *([self.engines] if self.engines else [])]
        for one in running:
            # A master that is killed leaves its workers, and starts new ones if they are killed first.
            for pid in one.pids if one.process.poll() is None else []:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            one.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def load_line(kit: Kit, port: int, options: dict[str, object], nice: int = 0) -> list[str]:
    """The command line of one burst of load."""
    line = [*(["nice", f"-n{nice}"] if nice else []), str(kit.get("moriio-bench")), "load", f"--target=127.0.0.1:{port}"]
    for key, value in options.items():
        line += [f"--{key}"] if value is True else [] if value is False else [f"--{key}={value}"]
    return line


def load(kit: Kit, port: int, *, nice: int = 0, **options: object) -> dict:
    """One burst of load, with what it cost the generator itself."""
    process = subprocess.Popen(load_line(kit, port, options, nice), stdout=subprocess.PIPE)
    out = process.stdout.read()
    _, code, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    process.stdout.close()
    if process.returncode != 0:
        raise Failed(f"load ended with {process.returncode}")
    return json.loads(out) | {"load_cpu": usage.ru_utime + usage.ru_stime}


def measure(stage: Stage, name: str, **options: object) -> dict:
    """One burst of load, with what it cost everybody. A failed request makes it void: see the result's failures."""
    relay = stage.relays.get(name)
    pids, engines = relay.pids if relay else [], stage.engines.pids
    machine.forget_peak(pids)
    idle = machine.Idle()
    cpu, ticks, engines_cpu = machine.cpu_seconds(pids), machine.cpu_ticks(pids), machine.cpu_seconds(engines)
    result = load(stage.kit, stage.port(name), **options)
    return result | {
        "cpu": machine.cpu_seconds(pids) - cpu,
        "cpu_ticks": machine.cpu_ticks(pids) - ticks,
        "engines_cpu": machine.cpu_seconds(engines) - engines_cpu,
        "idle": idle.share(),
        "peak_kb": machine.memory_kb(pids, "VmHWM"),
    }
