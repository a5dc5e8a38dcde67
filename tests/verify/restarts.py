"""An engine is killed and started again while clients go on."""

import json
import subprocess
import tempfile
import threading
import time

import texts
from ask import Server
from equal import expected


# An engine that dies within this time of a peer was at work with it.
IN_FLIGHT = 5


class Load:
    """Clients that never stop asking; every answer is compared with the undivided engine's."""

    def __init__(self, world):
        self.world, self.lock, self.ended = world, threading.Lock(), threading.Event()
        rng = texts.generator(world.seed + 6)
        self.jobs = [texts.request(rng, world.model, number, tokens=32) for number in range(32)]
        self.want = [expected(world.single, path, body, world.budget).content() for path, body in self.jobs]
        self.good, self.wrong, self.late, self.failed, self.streak = 0, 0, 0, {}, 0
        self.workers = [threading.Thread(target=self._run, args=(number,)) for number in range(world.concurrency)]

    def __enter__(self):
        for worker in self.workers:
            worker.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        for worker in self.workers:
            worker.join()

    def _run(self, number):
        while not self.ended.is_set():
            number = (number + self.world.concurrency) % len(self.jobs)
            answer = self.world.proxy.ask(*self.jobs[number], self.world.limit)
            with self.lock:
                self._count(answer, self.want[number])
            if answer.status != 200:
                time.sleep(0.05)

    def _count(self, answer, want):
        self.streak = self.streak + 1 if answer.content() == want else 0
        if answer.content() == want:
            self.good += 1
        elif answer.trouble.startswith("no end"):
            self.late += 1
        elif answer.status == 200 and not answer.trouble:
            self.wrong += 1
            self.world.note(f"wrong: {answer.content()} for {want}")
        else:
            key = answer.trouble or answer.status
            self.failed[key] = self.failed.get(key, 0) + 1

    def recovers(self, limit):
        """Seconds until twenty answers in a row were right; None if that did not come within `limit`."""
        with self.lock:
            self.streak = 0
        begun = time.monotonic()
        while time.monotonic() - begun < limit:
            if self.streak >= 20:
                return time.monotonic() - begun
            time.sleep(0.1)
        return None


def _stale(world):
    """Whom the proxy's `/ready` wants restarted; empty for a proxy that says no such thing."""
    try:
        pairs = json.loads(world.proxy.get("/ready")[1]).get("stale_pairs", [])
        return sorted({pair["restart"] for pair in pairs})
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return []


def again(world, engine, command):
    """Runs the operator's command and waits until the engine serves with a new process. Returns what went wrong.

    A command whose last line is a URL says where the engine is from now on.
    """
    before = engine.started()
    # Files and not pipes: what the command leaves in the background keeps its output open.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        try:
            code = subprocess.run(
                command, shell=True, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, timeout=world.start_limit
            ).returncode
        except subprocess.TimeoutExpired:
            return f"{command!r} does not return within {world.start_limit} s"
        output.seek(0), errors.seek(0)
        if code:
            return f"{command!r} exits {code}: {errors.read().strip()[-200:]}"
        said = output.read().strip().rpartition("\n")[2]
    if said.startswith("http://"):
        engine.server = Server(said)
    deadline = time.monotonic() + world.start_limit
    while time.monotonic() < deadline:
        now = engine.started()
        if now not in (None, before) and engine.alive():
            return ""
        time.sleep(1)
    return f"{engine.name} is not back within {world.start_limit} s"


class Watch:
    """Looks at engines that nobody restarts, and notes which ended, and how long after the one that was killed."""

    def __init__(self, killed, others):
        self.engines, self.killed = [killed, *others], killed
        self.ended, self.over = {}, threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        self._look()

    def _run(self):
        while not self.over.wait(0.3):
            self._look()

    def _look(self):
        for engine in self.engines:
            now = time.monotonic()
            if engine not in self.ended and not engine.alive() and not engine.alive():
                self.ended[engine] = now

    def after(self, engine):
        """Seconds from the killed engine's end to this one's; endless if the killed one was not missed, for then nothing
        ties the two together."""
        return self.ended[engine] - self.ended.get(self.killed, float("-inf"))


def restart(world, role):
    """The first engine of `role`, by the operator's command, under load; then whomever the proxy names as well.

    A prefill engine that is pushing into a decode engine at the moment when that one dies may end with it, and no proxy can
    help that (0.32.0 does). One that ends later was made to by a request that it should not have got.
    """
    engine = next(engine for engine in world.cluster.engines if engine.role == role)
    others = [other for other in world.cluster.engines if other is not engine]
    rest, said, recovered = world.cluster.at_rest(), [], None
    with Load(world) as load:
        time.sleep(3)
        with Watch(engine, others) as watch:
            trouble = again(world, engine, world.commands[role])
        deaths = {other: watch.after(other) for other in others if other in watch.ended}
        if not trouble and not deaths:
            recovered = load.recovers(30)
        # The proxy may know that this engine's peers take it for the old one: then they are what has to be restarted.
        named = _stale(world)
        for other in others:
            if other in deaths:
                said.append(f"{other.name} ended {deaths[other]:.1f} s after the killed engine")
            elif f"{other.server.host}:{other.server.port}" in named:
                said.append(f"the proxy names {other.name}")
            else:
                continue
            # The commands are for the first engine of each role.
            first = next(candidate for candidate in world.cluster.engines if candidate.role == other.role)
            if not trouble and other is first and other.role in world.commands:
                trouble = again(world, other, world.commands[other.role])
        if said and not trouble:
            recovered = load.recovers(60)
    late_deaths = [other for other, seconds in deaths.items() if seconds > IN_FLIGHT or role == "prefill"]
    clean, seconds, held = world.cluster.settle(rest, world.settle)
    detail = (
        f"{load.good} right, {load.wrong} wrong, {load.late} without end, others {load.failed}; "
        f"{'; '.join(said) or 'nobody named'}; recovered in {f'{recovered:.1f} s' if recovered is not None else 'NEVER'}; "
        f"{'free' if clean else 'HELD'} after {seconds:.1f} s: {held}"
    )
    if trouble:
        detail += f"; {trouble}"
    return not (load.wrong or load.late or late_deaths or trouble) and recovered is not None and clean, detail
