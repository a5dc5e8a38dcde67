"""Clients that leave, and requests that engines refuse: nothing may stay behind on any engine."""

import time
from concurrent.futures import ThreadPoolExecutor

import texts


def cleared(world, rest, detail):
    clean, seconds, held = world.cluster.settle(rest, world.settle)
    return clean, f"{detail}; {'free' if clean else 'HELD'} after {seconds:.1f} s: {held}"


def _leave(world, delays, first_byte=False, user=None):
    """Sends one request for each delay and leaves it; what a relay is to do goes along in `user`.

    A client that has left is followed by the next only after the time of an exchange: engines that are still busy with
    what nobody waits for are no proof of anything.
    """
    rng, pace = texts.generator(world.seed + 2), median(world)
    jobs = []
    for number, delay in enumerate(delays):
        path, body = texts.long_request(rng, world.model, number, tokens=200 if first_byte else 40)
        jobs.append((path, body | {"stream": True} if first_byte else body, delay))
        if user:
            jobs[-1][1]["user"] = user

    def one(job):
        path, body, delay = job
        try:
            return b"data: " in world.proxy.leave(path, body, delay, first_byte)
        except OSError:
            return False
        finally:
            time.sleep(pace)

    with ThreadPoolExecutor(world.concurrency) as pool:
        return sum(pool.map(one, jobs))


def median(world):
    rng = texts.generator(world.seed + 3)
    answers = [world.proxy.ask(*texts.long_request(rng, world.model, number)) for number in range(5)]
    if any(answer.status != 200 for answer in answers):
        raise OSError(f"the proxy answers {[answer.status for answer in answers]} before anybody has left")
    return sorted(answer.seconds for answer in answers)[2]


def leave_at_once(world):
    rest, rng = world.cluster.at_rest(), texts.generator(world.seed)
    _leave(world, [rng.random() * 0.02 for _ in range(world.count)])
    return cleared(world, rest, f"{world.count} left within 20 ms")


def leave_anywhere(world):
    rest, rng, usual = world.cluster.at_rest(), texts.generator(world.seed), median(world)
    _leave(world, [rng.random() * 1.2 * usual for _ in range(world.count)])
    return cleared(world, rest, f"{world.count} left within {1.2 * usual:.2f} s")


def leave_the_stream(world):
    rest, rng = world.cluster.at_rest(), texts.generator(world.seed)
    seen = _leave(world, [rng.random() * 0.3 for _ in range(world.count)], first_byte=True)
    clean, detail = cleared(world, rest, f"{seen} of {world.count} left a stream that had begun")
    return clean and seen == world.count, detail


def leave_while_held(world, role, action, after):
    """With a relay that keeps a leg's request or answer: the client is gone while everybody waits."""
    rest, before = world.cluster.at_rest(), world.relays[role].done(action)
    seconds, rng = 0.8, texts.generator(world.seed)
    user = f"between:{role}:{action}:{seconds}"
    _leave(world, [after * seconds + rng.random() * 0.2 for _ in range(world.count)], user=user)
    met = world.relays[role].done(action) - before
    clean, detail = cleared(world, rest, f"{met} of {world.count} left while {role}'s {action[5:]} was kept")
    return clean and met * 2 > world.count, detail


def refused_by_both(world):
    """A value that no engine takes: 400 from whoever is asked first, and as clean afterwards."""
    rest, rng = world.cluster.at_rest(), texts.generator(world.seed)

    def one(number):
        path, body = texts.long_request(rng, world.model, number)
        return world.proxy.ask(path, body | {"temperature": -1}).status

    with ThreadPoolExecutor(world.concurrency) as pool:
        statuses = list(pool.map(one, range(world.count)))
    right = statuses.count(400)
    clean, detail = cleared(world, rest, f"{right} of {world.count} answered 400")
    return clean and right == world.count, detail


def refused_by_decode(world):
    """`stream_options` without `stream`: prefill's leg has neither, decode answers 400 with prefill's blocks left over."""
    rest, rng = world.cluster.at_rest(), texts.generator(world.seed)

    def one(number):
        path, body = texts.long_request(rng, world.model, number % 2)
        return world.proxy.ask(path, body | {"stream_options": {"include_usage": True}})

    with ThreadPoolExecutor(world.concurrency) as pool:
        answers = list(pool.map(one, range(world.count)))
    right = sum(answer.status == 400 and "stream" in answer.message for answer in answers)
    clean, detail = cleared(world, rest, f"{right} of {world.count} answered 400 by decode")
    return clean and right == world.count, detail
