"""The scenes about what there is beside throughput: open streams, stalls, idling, start, counts."""

import json
import re
import subprocess
import time

from harness import machine
from harness.install import Missing, say
from harness.scenes import FEWER
from harness.session import IDLE_NEEDED, Session
from harness.stage import AHEAD, BEHIND, PORTS, Failed, Running, Stage, load, load_line, status
from harness.subjects import Engines, command

OPEN_STREAMS = 8000
NEVER_MS = 3_600_000
TWO_LEGS = ["nginx-mirror", "floor", "vllm-router", "moriio-write", "moriio-read"]
BODIES_MB = (20, 200)
# Between two bodies: without it the load of bodies alone would take the machine, whoever relays them.
PAUSE_MS = 150
BODIES_PATIENCE = 120
# As long as it is between two probes of an engine.
IDLE_SECONDS = 10
# Allocations cannot be counted in these: valgrind cannot run what they start.
UNCOUNTABLE = {"vllm-router": "valgrind does not carry a Python interpreter with a Rust module to its first answer in time"}


def idle_streams(session: Session) -> None:
    """Streams that have begun and then say nothing, and what each keeps resident."""
    for number in range(session.fewer if not session.quick else 1):
        for name in session.wanted(TWO_LEGS):
            if number > 0 and not name.startswith("moriio"):
                continue
            with Stage(session.kit, [name], token_delay=NEVER_MS) as stage:
                session.add("idle_streams", "", name, number, _hold(stage, name, OPEN_STREAMS))
    say("bench: idle_streams: done")


def _hold(stage: Stage, name: str, count: int) -> dict:
    rest = machine.memory_kb(stage.relays[name].pids, "VmRSS")
    line = load_line(stage.kit, stage.port(name), {"connections": count, "tokens": 2, "stream": True, "hold": True})
    holder = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        seen = json.loads(holder.stdout.readline() or '{"open": 0}')["open"]
        if not seen:
            raise Failed(f"{name} opened no stream")
        # Prefill's connections go once they have been idle for some seconds.
        time.sleep(0.5)
        resident = machine.memory_kb(stage.relays[name].pids, "VmRSS")
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    each = (resident - rest) / seen
    return {"wanted": count, "open": seen, "kb_each": each, "resident_kb": rest, "mb_at_10000": (rest + each * 10_000) / 1024}


def stall(session: Session) -> None:
    """How long a paced stream's chunks are under way while large bodies arrive, beside the same streams without."""
    names = session.wanted(["direct", "floor", "floor-serial", "vllm-router", "moriio-write", "moriio-read"])
    streams = {"connections": 64, "tokens": int(session.seconds(3) * 50), "stream": True, "ramp": 0.2, "requests": 1,
               "stamped": True, "seconds": 60}
    with Stage(session.kit, names, token_delay=20, stamped=True) as stage:
        for number in range(session.fewer):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                for body in (0, *BODIES_MB) if number < FEWER else (0, BODIES_MB[0]):
                    session.add("stall", f"{body} MB", name, number, _stalled(stage, name, body, streams))
    say("bench: stall: done")


def _stalled(stage: Stage, name: str, megabytes: int, streams: dict) -> dict:
    bodies = None
    if megabytes:
        options = {"prompt": megabytes << 20, "tokens": 1, "seconds": streams["tokens"] * 0.02, "pause": PAUSE_MS}
        bodies = subprocess.Popen(load_line(stage.kit, stage.port(name), options, BEHIND), stdout=subprocess.PIPE)
    try:
        idle = machine.Idle()
        sample = load(stage.kit, stage.port(name), nice=AHEAD, **streams)
        share = idle.share()
        if bodies:
            seen = json.loads(_told(bodies))
            sample |= {"bodies": seen["requests"], "failures": sample["failures"] + seen["failures"],
                       "first_failure": sample["first_failure"] or seen["first_failure"]}
    finally:
        if bodies:
            bodies.kill()
            bodies.wait()
    # Large bodies may well take all there is: only the run without them can be void.
    return sample | {"idle": share, "void": not megabytes and share < IDLE_NEEDED}


def _told(bodies: subprocess.Popen) -> bytes:
    """The last body is seen to its end, which takes long where others use the machine."""
    try:
        return bodies.communicate(timeout=BODIES_PATIENCE)[0]
    except subprocess.TimeoutExpired:
        raise Failed(f"the last body was not answered within {BODIES_PATIENCE} s") from None


def idle(session: Session) -> None:
    """Nothing but engines that ping every 3 s, as vLLM's do since 0.20.0: 4 of them, and 512."""
    names = session.wanted(["vllm-router", "moriio-write", "moriio-read"])
    for each in (2, 256):
        with Stage(session.kit, names, each=each, ping_ms=3000) as stage:
            # Registration is over when each has been asked and looked at; then there are only pings.
            time.sleep(1 if session.quick else 4)
            for number in range(session.fewer):
                before = {name: machine.cpu_seconds(relay.pids) for name, relay in stage.relays.items()}
                begin = time.monotonic()
                time.sleep(session.seconds(IDLE_SECONDS))
                for name, relay in stage.relays.items():
                    used = machine.cpu_seconds(relay.pids) - before[name]
                    session.add("idle", f"{2 * each} engines", name, number,
                                {"ms_per_s": used * 1000 / (time.monotonic() - begin)})
    say("bench: idle: done")


def static(session: Session) -> None:
    """From the start to the first 200 of /health, the size of the program, and what is resident at rest."""
    for name in session.wanted(["nginx-mirror", "floor", "haproxy", "vllm-router", "moriio-write"]):
        for number in range(session.fewer if name.startswith("moriio") else 1):
            with Stage(session.kit, [name]) as stage:
                rest = machine.memory_kb(stage.relays[name].pids, "VmRSS")
                values = {"resident_kb": rest}
                if name == "moriio-write":
                    values |= {"start_ms": _start_time(stage, name), "binary_bytes": stage.kit.get("moriio-proxy").stat().st_size}
                session.add("static", "", name, number, values)
    say("bench: static: done")


def _start_time(stage: Stage, name: str) -> float:
    setup = command(stage.kit, name, Engines([1], [1]), PORTS.take(3), stage.folder)
    begin = time.monotonic()
    running = stage.start("start", setup)
    try:
        while status(setup.port, "/health") != 200:
            running.require()
            if time.monotonic() - begin > 10:
                raise Failed(f"{name} does not serve /health within 10 s")
        return (time.monotonic() - begin) * 1000
    finally:
        running.process.kill()
        running.process.wait()


LOADS = {
    "exchange": {"connections": 64},
    "chunk": {"connections": 32, "tokens": 1000, "stream": True},
    "paced": {"connections": 64, "tokens": 64, "stream": True},
}


def counts(session: Session) -> None:
    """System calls and context switches by the kernel's counters, allocations by valgrind."""
    for case, options in LOADS.items():
        with Stage(session.kit, session.wanted(TWO_LEGS), token_delay=20 if case == "paced" else 0) as stage:
            for number in range(session.fewer):
                for name, relay in stage.relays.items():
                    session.add("counts", case, name, number, _counted(session, stage, relay, options, number))
    for case in ("exchange", "chunk"):
        for name in session.wanted(TWO_LEGS):
            session.add("counts", f"allocated, {case}", name, 0, _allocated(session, name, case))
    say("bench: counts: done")


def _counted(session: Session, stage: Stage, relay: Running, options: dict, number: int) -> dict:
    """By the kernel's counters; where perf cannot be had or may not count, switches alone, from /proc."""
    line = load_line(stage.kit, relay.port, options | {"seconds": session.seconds(0.6)})
    out = stage.folder / "perf"
    before = machine.switches(relay.pids)
    try:
        perf = [str(session.kit.get("perf")), "stat", "-x,", "-o", str(out), "-e", "raw_syscalls:sys_enter,context-switches",
                "-p", ",".join(map(str, relay.pids)), "--"]
        done = subprocess.run([*perf, *line], stdout=subprocess.PIPE, check=False)
        if done.returncode != 0:
            raise Missing(f"perf ended with {done.returncode}: {out.read_text()[-300:] if out.exists() else ''}")
    except Missing as error:
        done = subprocess.run(line, stdout=subprocess.PIPE, check=True)
        counted = {"syscalls": None, "switches": machine.switches(relay.pids) - before, "why": f"no system calls: {error}"}
    else:
        found = {line.split(",")[2]: int(line.split(",")[0]) for line in out.read_text().splitlines()
                 if line.count(",") > 2 and line[0].isdigit()}
        counted = {"syscalls": found["raw_syscalls:sys_enter"], "switches": found["context-switches"]}
    return json.loads(done.stdout) | counted | {"order": number}


def _allocated(session: Session, name: str, case: str) -> dict:
    """The difference between a short and a longer run, so that what a start takes falls out."""
    if name in UNCOUNTABLE:
        return {"allocations": None, "why": UNCOUNTABLE[name]}
    if case == "chunk":
        # Slow enough for a relay under valgrind to read each by itself.
        runs, delay, units = [{"requests": 5, "tokens": tokens, "stream": True} for tokens in (50, 250)], 5, 5 * 200
    else:
        runs, delay, units = [{"requests": requests} for requests in (100, 600)], 0, 500
    short, long = (_under_valgrind(session, name, delay, run) for run in runs)
    return {"allocations": (long[0] - short[0]) / units, "allocated_bytes": (long[1] - short[1]) / units}


def _under_valgrind(session: Session, name: str, token_delay: int, options: dict) -> tuple[int, int]:
    """How many allocations a whole life with this load had, and of how many bytes."""
    valgrind = session.kit.get("valgrind")
    wrapper = [str(valgrind), "--leak-check=no", "--undef-value-errors=no"]
    with Stage(session.kit, [name], token_delay=token_delay, wrapper=wrapper) as stage:
        relay = stage.relays[name]
        result = load(stage.kit, relay.port, **(options | {"connections": 1, "seconds": 60}))
        if result["failures"]:
            raise Failed(f"{name} under valgrind: {result['first_failure']}")
        relay.process.terminate()
        relay.process.wait(timeout=60)
        said = relay.log.read_text(errors="replace")
    found = re.findall(r"total heap usage: ([\d,]+) allocs, [\d,]+ frees, ([\d,]+) bytes", said)
    if not found:
        raise Failed(f"valgrind says nothing of {name}'s heap: {said[-300:]}")
    return tuple(sum(int(line[at].replace(",", "")) for line in found) for at in (0, 1))
