"""The launchers' rows, step by step. A step that fails is told, and the next is taken as the launcher would take it."""

import json
from collections import Counter

import bench
from engines import MODEL, START_LIMIT, healthy
from evaluate import NOISE, SCORED, WRITTEN, Form, evaluate
from processes import get, is_open, left_over, wait_for
from router import WELL, Router, grown
from steps import Steps

TOOLS = ["lm-eval", "bench"]
# Prompts in one request, beside one.
BATCH = 8


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
        evaluations(world, router, steps)
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


def evaluations(world, router, steps):
    """Texts to be written and prompts to be scored; one prompt a request, as CI has it, and several."""
    for task, tool in ((WRITTEN, "lm_eval"), (SCORED, "choices")):
        for form in (Form(tokens, batch) for batch in (1, BATCH) for tokens in (False, True)):
            name = f"vllm-ci, {tool}, {form}"
            if task.scores_prompts and not world.engines.scores_prompts:
                steps.leave_out(name, "simulated engines have no logprobs of prompts")
            else:
                steps.take(name, lambda task=task, form=form: evaluated(world, router, task, form))


def evaluated(world, router, task, form):
    requests, before = task.requests(form.batch), len(router.exchanges())
    here, right, counts = counted(router, lambda: ask_all(world, router.url, "router", task, form), requests.total())
    told = router.exchanges()[before:]
    sent, decoded = asked_in(told), sum("decode" in exchange for exchange in told)
    single = form if world.engines.takes_lists else Form(form.tokens, 1)
    there = ask_all(world, world.engines.single, f"undivided-{form.batch}", task, single)
    unequal, prompts = here.unequal(there), task.prompts()
    equal = here.count() == there.count() == prompts and not unequal and here.score == there.score
    # Prefill scores prompts alone: decode has no logits of what it loads.
    as_meant = sent == requests and decoded == (0 if task.scores_prompts else prompts)
    detail = f"score {here.score:.6f}, undivided {there.score:.6f}; {here.count()} answers, {len(unequal)} unequal"
    if task.scores_prompts:
        greedy = sum(given[1] == "True" for _, answers in here.answers.values() for given in answers)
        detail += f", {greedy} greedy, off by {here.distance(there):.1e} at most (of {NOISE:.0e}), decode asked for {decoded}"
    if single != form:
        detail += ", the undivided engine's asked for one by one: simulated, it takes no lists"
    lists = ", ".join(f"{count} of {size}" for size, count in sorted(sent.items(), reverse=True))
    return right and equal and as_meant, f"{detail}; requests {lists}; {counts}"


def asked_in(exchanges):
    """How many requests asked for how many answers."""
    return Counter(int(exchange.get("siblings", 1)) for exchange in exchanges if "sibling" not in exchange)


def ask_all(world, url, whose, task, form):
    folder = world.folder / f"{whose}-{task.name}-{str(form).replace(' ', '-')}"
    return evaluate(world.python, url, world.engines.tokenizer, folder, task, form)


def lists_of_one(world, router):
    """A form of a prompt that the pinned lm-eval does not send here."""
    bodies = [
        {
            "model": MODEL,
            "prompt": [f"Question: {row['question']}\nAnswer:"],
            "max_tokens": 24,
            "temperature": 0,
            "stop": [" so"],
        }
        for row in WRITTEN.questions()[:16]
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
