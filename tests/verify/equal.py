"""A pair's answers against those of one undivided engine."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import apis
import texts


def expected(single, path, body, budget):
    """What the undivided engine says; for a proxy that asks decode for one token less, to a limit of one less."""
    if budget == "minus-one":
        body = apis.of(path).budgeted(body)
    return single.ask(path, body)


def _jobs(world, rng):
    """Completions and chat by turns, and after each four of them one for each other API that both sides serve."""
    more = []
    for api in (apis.RESPONSES, apis.MESSAGES):
        if reason := apis.served(world, api):
            world.note(f"{api.path} is left out: {reason}")
        else:
            more += [(api, False), (api, True)]
    kinds = 4 + len(more)
    for number in range(world.count):
        turn = number % kinds
        if turn < 4:
            yield texts.request(rng, world.model, turn)
        else:
            api, stream = more[turn - 4]
            prompt = texts.prompt(rng, rng.choice([5, 20, 60, 200]))
            yield api.path, api.request(world.model, prompt, 24, stream)


def equal(world):
    """Text, usage and finish reason of `count` requests; those to which the undivided engine itself has no one answer
    (kernels whose sums depend on the batch) are left out, and said so. Every rank of every engine must get its share."""
    rng = texts.generator(world.seed)
    jobs = list(_jobs(world, rng))

    def one(job):
        path, body = job
        want = expected(world.single, path, body, world.budget)
        got = world.proxy.ask(path, body)
        return want, got

    def steady(job, want):
        path, body = job
        return all(expected(world.single, path, body, world.budget).content() == want.content() for _ in range(3))

    before = world.cluster.tokens()
    with ThreadPoolExecutor(world.concurrency) as pool:
        results = list(pool.map(one, jobs))
    after = world.cluster.tokens()
    idle = [rank for rank in before if after.get(rank, 0) <= before[rank]]
    # Too few requests reach everybody only by luck.
    left_out = idle if world.count >= 4 * len(before) else []
    broken = [(job, want, got) for job, (want, got) in zip(jobs, results) if want.content() != got.content()]
    wrong = [(job, want, got) for job, want, got in broken if steady(job, want)]
    failed = [want for want, _ in results if want.status != 200]
    for (path, body), want, got in itertools.islice(wrong, 3):
        world.note(f"{path} stream={bool(body.get('stream'))}: single {want.content()}, proxy {got.content()} {got.message}")
    # A comparison that could not fail would prove nothing: the model must answer different prompts differently.
    variety = len({want.text for want, _ in results})
    detail = f"{world.count - len(broken)} of {world.count} equal, {len(broken) - len(wrong)} left out, {variety} different texts"
    detail += f", {len(before) - len(idle)} of {len(before)} ranks used"
    for rank in left_out:
        world.note(f"{rank} was never used")
    return not wrong and not failed and not left_out and variety * 2 > world.count, detail


def one_token(world):
    """`max_tokens` 1, where a budget of one less must not become zero, and no limit at all."""
    rng, bad = texts.generator(world.seed + 1), []
    for number in range(4):
        path, body = texts.request(rng, world.model, number, tokens=1, words=20)
        want, got = expected(world.single, path, body, world.budget), world.proxy.ask(path, body)
        if want.content() != got.content():
            bad.append(f"one token, {path}: {want.content()} and {got.content()}")
    path, body = texts.request(rng, world.model, 0, words=20)
    del body["max_tokens"]
    want, got = world.single.ask(path, body), world.proxy.ask(path, body)
    if want.content() != got.content():
        bad.append(f"no limit: {want.content()} and {got.content()}")
    for line in bad:
        world.note(line)
    return not bad, f"{5 - len(bad)} of 5 equal"
