"""The scenes with load: what is asked for, of whom, and how often. Each can be run alone."""

import time
from contextlib import ExitStack

from harness import machine
from harness.session import Session, together
from harness.stage import Stage, load, measure
from harness.subjects import NAMES

# WRITE for vllm-router; its READ only where time to first output is compared.
COMPARED = [name for name in NAMES if name not in ("direct", "floor-serial", "vllm-router-read")]
TWO_LEGS = ["nginx-mirror", "floor", "moriio-write", "moriio-read"]
# Rounds of what takes long and varies little.
FEWER = 3
LARGE, AGENT = 512 << 10, 4 << 20
# After so many seconds no connection to an engine rests any more.
RESTED = 5


def exchange(session: Session) -> None:
    """1 KB prompts, 16 tokens, whole answers, 64 clients."""
    with Stage(session.kit, session.wanted([*COMPARED, "floor-serial"])) as stage:
        session.alternate("exchange", together(stage), connections=64, seconds=session.seconds(1.2))


def chunk(session: Session) -> None:
    """1,000 tokens streamed without delay, 32 clients."""
    with Stage(session.kit, session.wanted(COMPARED)) as stage:
        session.alternate("chunk", together(stage), connections=32, tokens=1000, stream=True,
                          seconds=session.seconds(1.2))


def paced(session: Session) -> None:
    """96 tokens streamed, one in 20 ms, 64 clients."""
    with Stage(session.kit, session.wanted(["direct", *COMPARED]), token_delay=20) as stage:
        session.alternate("paced", together(stage), paced=True, connections=64, stream=True, ramp=0.6, requests=1,
                          tokens=int(session.seconds(1.92) * 50), seconds=60)


def large(session: Session) -> None:
    """512 KB prompts, 16 tokens, 16 clients: CPU, and memory at its peak."""
    with Stage(session.kit, session.wanted(COMPARED)) as stage:
        # At rest is after small requests: what their code and buffers take is not for the bodies.
        for name in stage.names:
            load(session.kit, stage.port(name), connections=16, seconds=session.seconds(0.5))
        time.sleep(0 if session.quick else RESTED)
        for name, relay in stage.relays.items():
            session.add("large", "rest", name, 0, {"resident_kb": machine.memory_kb(relay.pids, "VmRSS")})
        session.alternate("large", together(stage), connections=16, prompt=LARGE, seconds=session.seconds(1.2))


def agents(session: Session) -> None:
    """4 MB of an agent's messages, one token, 8 clients."""
    with Stage(session.kit, session.wanted(COMPARED)) as stage:
        session.alternate("agents", together(stage), rounds=session.fewer, connections=8, prompt=AGENT, agent=True,
                          tokens=1, seconds=session.seconds(1))


def ttft(session: Session) -> None:
    """One token streamed, one client."""
    with Stage(session.kit, session.wanted(NAMES)) as stage:
        session.alternate("ttft", together(stage), tokens=1, stream=True, seconds=session.seconds(0.8))


def streams512(session: Session) -> None:
    """512 streams of 20 ms."""
    _streams(session, "streams512", 512, 20, 2.4)


def streams2048(session: Session) -> None:
    """2,048 streams of 100 ms."""
    _streams(session, "streams2048", 2048, 100, 3.5)


def _streams(session: Session, scene: str, count: int, delay: int, length: float) -> None:
    tokens = int(session.seconds(length) * 1000) // delay
    with Stage(session.kit, session.wanted(["direct", *TWO_LEGS]), token_delay=delay) as stage:
        session.alternate(scene, together(stage), rounds=session.fewer, paced=True, warm=False, connections=count,
                          requests=1, tokens=tokens, stream=True, ramp=1, seconds=60)


def sweep(session: Session) -> None:
    """The exchange at more and more clients."""
    with Stage(session.kit, session.wanted(TWO_LEGS)) as stage:
        for connections in (8, 16, 32, 64, 128, 256, 512):
            session.alternate("sweep", together(stage), case=f"C{connections}", rounds=session.fewer,
                              connections=connections, seconds=session.seconds(0.5))


def pool(session: Session) -> None:
    """The exchange in front of more and more engines, each pool with a proxy of its own, in turn."""
    shapes = {"1P1D": (1, 1), "2P2D": (2, 1), "4P4D": (4, 1), "16P16D": (16, 1), "16P16D dp 8": (16, 8)}
    for name in session.wanted(["moriio-write", "moriio-read"]):
        with ExitStack() as stack:
            columns = {
                shape: (stack.enter_context(Stage(session.kit, [name], each=each, dp=dp)), name)
                for shape, (each, dp) in shapes.items()
            }
            session.alternate("pool", columns, cases=True, connections=64, seconds=session.seconds(2))


def workers(session: Session) -> None:
    """As much as goes through one thread that serves clients, and through two, in turn: 256 clients, whole and streamed."""
    loads = {"exchange": {"connections": 256}, "chunk": {"connections": 64, "tokens": 1000, "stream": True}}
    for name in session.wanted(["moriio-write", "moriio-read"]):
        with ExitStack() as stack:
            stages = {count: stack.enter_context(Stage(session.kit, [name], workers=count)) for count in (1, 2)}
            for case, options in loads.items():
                columns = {f"{case}, --workers {count}": (stage, name) for count, stage in stages.items()}
                session.alternate("workers", columns, cases=True, rounds=session.fewer, seconds=session.seconds(1.2),
                                  **options)


def memory(session: Session) -> None:
    """One prompt of 1, 20 and 200 MB, and what it took at its peak above what was resident before."""
    for megabytes in (1, 20, 200):
        for number in range(session.fewer if megabytes < 200 else min(session.fewer, FEWER)):
            # Each in a fresh process: what the last body left would be counted as rest.
            with Stage(session.kit, session.wanted(["nginx-mirror", "floor", "vllm-router", "moriio-write", "moriio-read"])
                       ) as stage:
                for name, relay in stage.relays.items():
                    rest = machine.memory_kb(relay.pids, "VmRSS")
                    sample = measure(stage, name, prompt=megabytes << 20, requests=1, tokens=1, seconds=60)
                    session.add("memory", f"{megabytes} MB", name, number, sample | {"resident_kb": rest})
