"""Legs that fail on one side only, by relays in front of the engines (`between.py`)."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import orphans
import texts
from equal import expected


class Relay:
    """A relay's control, at the address under which the engine is registered."""

    def __init__(self, engine):
        self.engine = engine
        if json.loads(engine.server.get("/between")[1])["role"] != engine.role:
            raise SystemExit(f"{engine.name}: its relay has another --role")

    def done(self, action):
        return json.loads(self.engine.server.get("/between")[1])["done"].get(action, 0)

    def refuse(self, seconds):
        self.engine.server.ask(f"/between/refuse?{seconds}", {}, 5)


def answered(world, role, action):
    """A leg is answered `action` (a status, or `cut`) `count` times; a good exchange goes between each two."""
    relay, rest = world.relays[role], world.cluster.at_rest()
    before, deadline, lock = relay.done(action), time.monotonic() + 10 + world.count, threading.Lock()
    statuses, wrong = {}, []
    rng = texts.generator(world.seed + 4)
    jobs = [texts.long_request(rng, world.model, number) for number in range(world.count)]
    pace = orphans.median(world)
    good = [texts.request(rng, world.model, number) for number in range(16)]
    want = [expected(world.single, path, body, world.budget).content() for path, body in good]

    def one(number):
        path, body = jobs[number]
        # A breaker may have taken the engine out for a while: until this leg has met its fault, or time is up.
        while time.monotonic() < deadline:
            answer = world.proxy.ask(path, body | {"user": f"between:{role}:{action}"}, 60)
            with lock:
                statuses[answer.status] = statuses.get(answer.status, 0) + 1
            if answer.status != 503 or "said between" in answer.message:
                break
            time.sleep(0.2)
        path, body = good[number % len(good)]
        answer = world.proxy.ask(path, body, 60)
        if answer.content() != want[number % len(good)] and answer.status != 503:
            wrong.append(answer)
        time.sleep(pace)

    with ThreadPoolExecutor(world.concurrency) as pool:
        list(pool.map(one, range(world.count)))
    for answer in wrong[:3]:
        world.note(f"a good exchange beside it: {answer.content()} {answer.message}")
    met = relay.done(action) - before
    likely = 502 if action == "cut" else int(action)
    clean, detail = orphans.cleared(world, rest, f"met {met} of {world.count}, statuses {statuses}, {len(wrong)} others wrong")
    return clean and met >= world.count and statuses.get(likely, 0) >= world.count and not wrong, detail


def refused(world, role):
    """Connections to an engine are refused for a moment, again and again, under load."""
    relay, rest = world.relays[role], world.cluster.at_rest()
    statuses, lock, stop = {}, threading.Lock(), threading.Event()
    rng = texts.generator(world.seed + 5)
    jobs = [texts.long_request(rng, world.model, number) for number in range(64)]

    def load(worker):
        number = worker
        while not stop.is_set():
            answer = world.proxy.ask(*jobs[number % len(jobs)], 60)
            number += world.concurrency
            with lock:
                key = answer.trouble or answer.status
                statuses[key] = statuses.get(key, 0) + 1
            if answer.status == 503:
                time.sleep(0.02)

    workers = [threading.Thread(target=load, args=(worker,)) for worker in range(world.concurrency)]
    for worker in workers:
        worker.start()
    for _ in range(max(3, world.count // 20)):
        time.sleep(1)
        relay.refuse(0.3)
        time.sleep(4)
    stop.set()
    for worker in workers:
        worker.join()
    back = _back(world)
    late = sum(number for key, number in statuses.items() if str(key).startswith("no end"))
    clean, detail = orphans.cleared(world, rest, f"answers {statuses}; back after {back:.1f} s")
    return clean and not late and back < 60 and statuses.get(200, 0) > 0, detail


def _back(world):
    """Seconds until an exchange succeeds again."""
    begun = time.monotonic()
    path, body = texts.request(texts.generator(world.seed), world.model, 0)
    while time.monotonic() - begun < 60 and world.proxy.ask(path, body, 60).status != 200:
        time.sleep(0.2)
    return time.monotonic() - begun
