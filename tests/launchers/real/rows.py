"""The launchers' rows, step by step. A step that fails is told, and the next is taken as the launcher would take it."""

import json

import bench
from engines import MODEL, START_LIMIT, healthy
from evaluate import TASKS, evaluate
from processes import get, is_open, left_over, wait_for
from router import WELL, Router, grown
from steps import Steps

TOOLS = ["lm-eval", "bench"]


def play(world, names):
    """Every row that is named; at the end nothing may be left of any. The number of checks that failed."""
    steps, routers = Steps(), []
    try:
        for name in names:
            routers.append(Router(world.binary, world.registration, world.folder))
            ALL[name](world, routers[-1], steps)
    finally:
        steps.take("nothing is left", lambda: nothing_left(world, routers))
    return steps.close(world.folder)


def nothing_left(world, routers):
    try:
        world.engines.stop()
    finally:
        processes = left_over()
    ports = [world.registration, *(router.port for router in routers)]
    ports = [port for port in ports if is_open(port)]
    return not processes and not ports, f"processes {processes}, ports {ports}" if processes or ports else ""


def engines_up(world, steps):
    """Starts them unless they serve already; CI looks every 10 s."""

    def step():
        world.engines.start(world.registration)
        wait_for(lambda: healthy(world.engines) or world.engines.fault(), START_LIMIT, 10)
        return healthy(world.engines), world.engines.fault()

    return healthy(world.engines) or steps.take("engines are healthy", step)


def vllm_ci(world, router, steps):
    def starts():
        print(f"     {router.as_vllm_ci(world.engines.ranks)}", flush=True)
        return router.comes_up(), f"/health {get(f'{router.url}/health')[0]} before engines"

    def is_killed():
        status, seconds, alive = get(f"{router.url}/health")[0], router.killed(), healthy(world.engines)
        return status == 200 and seconds is not None and alive, f"/health was {status}; engines healthy: {alive}"

    if not steps.take("vllm-ci, router starts", starts) or not engines_up(world, steps):
        return
    if "lm-eval" in world.tools:
        steps.take("vllm-ci, lm_eval, texts", lambda: evaluated(world, router, tokens=False))
        steps.take("vllm-ci, lm_eval, tokens", lambda: evaluated(world, router, tokens=True))
    steps.take("vllm-ci, lists of one text", lambda: lists_of_one(world, router))
    benches(world, router, steps, "vllm-ci", [(load, load.as_vllm_ci(router)) for load in bench.VLLM_CI])
    steps.take("vllm-ci, killed", is_killed)


def mad(world, router, steps):
    engines = world.engines

    def starts():
        print(f"     {router.as_mad(engines.ranks, engines.prefill, engines.decode)}", flush=True)
        return router.comes_up(), ""

    def registers():
        missing = router.registered()
        return not missing, f"no {', no '.join(missing)} in its log" if missing else "Add Prefill, Add Decode"

    def is_terminated():
        (code, seconds), alive = router.terminated(), healthy(engines)
        return code == 0 and seconds is not None and alive, f"exit code {code}; engines healthy: {alive}"

    if not engines_up(world, steps) or not steps.take("mad, router starts", starts):
        return
    steps.take("mad, registered", registers)
    steps.take("mad, completion", lambda: without_model(world, router))
    benches(world, router, steps, "mad", [(load, load.as_mad(router)) for load in bench.MAD])
    steps.take("mad, terminated", is_terminated)


def counted(router, work, requests):
    """Does `work`. Nothing but `requests` exchanges that ended well may be in the router's own counts, none repeated."""
    before = router.counts()
    result = work()
    counts = grown(before, router.counts())
    return result, counts == {WELL: requests}, f"router counts {counts}"


def evaluated(world, router, tokens):
    form, asked = "tokens" if tokens else "texts", (world.python, world.engines.tokenizer, tokens)
    requests = len(json.loads((TASKS / "questions.json").read_text()))
    here, right, counts = counted(router, lambda: ask_all(world, router.url, f"router-{form}", asked), requests)
    there = ask_all(world, world.engines.single, f"undivided-{form}", asked)
    unequal = here.unequal(there)
    equal = len(here.answers) == requests and not unequal and here.score == there.score
    detail = f"score {here.score:.6f}, undivided {there.score:.6f}; {len(here.answers)} answers, {len(unequal)} unequal"
    return right and equal, f"{detail}; {counts}"


def ask_all(world, url, name, asked):
    python, tokenizer, tokens = asked
    return evaluate(python, url, tokenizer, world.folder / name, tokens)


def lists_of_one(world, router):
    """A form of a prompt that the pinned lm-eval does not send."""
    bodies = [
        {
            "model": MODEL,
            "prompt": [f"Question: {row['question']}\nAnswer:"],
            "max_tokens": 24,
            "temperature": 0,
            "stop": [" so"],
        }
        for row in json.loads((TASKS / "questions.json").read_text())[:16]
    ]
    pairs, right, counts = counted(router, lambda: [compare(world, router, body) for body in bodies], len(bodies))
    equal = sum(here == there for here, there in pairs)
    return right and equal == len(bodies), f"{equal} of {len(bodies)} equal; {counts}"


def without_model(world, router):
    body = {"prompt": "Who is AMD CEO?", "temperature": 0, "max_tokens": 10, "top_k": 1}
    (here, there), right, counts = counted(router, lambda: compare(world, router, body), 1)
    return right and here == there, f"{here}; {counts}"


def compare(world, router, body):
    """What the router and the undivided engine make of one request."""
    return [completion(url, body) for url in (router.url, world.engines.single)]


def completion(url, body):
    status, text = get(f"{url}/v1/completions", 240, json.dumps(body).encode())
    if status != 200:
        raise OSError(f"{url}: {status} {text[:300]}")
    answer = json.loads(text)
    choice = answer["choices"][0]
    return choice["text"], choice["finish_reason"], answer["usage"]["completion_tokens"]


def benches(world, router, steps, row, loads):
    for load, options in loads if "bench" in world.tools else ():
        name = f"{row}, bench {load}"
        if world.kit:
            steps.take(name, lambda load=load, options=options: benched(world, router, row, load, options))
        else:
            steps.leave_out(name, "`vllm bench serve` comes with a kit of real engines")


def benched(world, router, row, load, options):
    log = world.folder / f"bench-{row}-{load.inputs}-{load.outputs}-{load.at_once}.log"
    work = counted(router, lambda: bench.bench(world.kit, world.engines.tokenizer, options, log), load.requests)
    (numbers, seconds), right, counts = work
    wanted = {"completed": load.requests, "failed": 0, "tokens": load.requests * load.outputs}
    detail = f"{numbers['completed']} of {load.requests} completed, {numbers['tokens']} of {wanted['tokens']} tokens"
    return right and numbers == wanted, f"{detail} in {seconds:.1f} s; {counts}"


ALL = {"vllm-ci": vllm_ci, "mad": mad}
