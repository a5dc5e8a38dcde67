"""Requests for several answers, of which a pair of engines makes one each."""

import apis
import texts
from equal import expected


def _bodies(world, rng):
    """Lists of prompts, as texts and as token ids; several choices, which a seed makes repeatable; both."""
    words = [texts.prompt(rng, count) for count in (5, 40, 120)]
    ids = [apis.tokens_of(world.single, world.model, text) for text in words]
    for stream in (False, True):
        for prompts in (words, ids, words[:1]):
            yield apis.COMPLETIONS.path, apis.COMPLETIONS.request(world.model, prompts, 8, stream)
        seeded = {"temperature": 0.8, "seed": 7}
        for prompt, choices in ((words[1], 3), (words, 2)):
            body = apis.COMPLETIONS.request(world.model, prompt, 8, stream)
            yield apis.COMPLETIONS.path, {**body, **seeded, "n": choices}
        body = apis.CHAT.request(world.model, words[1], 8, stream)
        yield apis.CHAT.path, {**body, **seeded, "n": 3}


def _one_by_one(world, path, body):
    """What an engine that takes one prompt and one choice at a time says to each; none of its usage counts."""
    prompts = body["prompt"] if isinstance(body.get("prompt"), list) else [body.get("prompt")]
    choices, answers = body.get("n", 1), {}
    for number, prompt in enumerate(prompts):
        for choice in range(choices):
            one = {**body, "n": 1, **({"prompt": prompt} if prompt is not None else {})}
            if "seed" in body:
                one["seed"] = body["seed"] + choice
            answers[number * choices + choice] = expected(world.single, path, one, world.budget).choices.get(0)
    return answers, ()


def _wanted(world, path, body, count):
    answer = expected(world.single, path, body, world.budget)
    if len(answer.choices) == count:
        return answer.choices, answer.usage
    return _one_by_one(world, path, body)


def several(world):
    """Each choice says what the undivided engine's says, and ends as that; the usage is one answer's."""
    wrong, equal, apart = [], 0, 0
    for path, body in _bodies(world, texts.generator(world.seed + 2)):
        count = (len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1) * body.get("n", 1)
        got = world.proxy.ask(path, body)
        wanted, usage = _wanted(world, path, body, count)
        apart += usage == ()
        if (got.status, got.trouble, got.choices) == (200, "", wanted) and (not usage or got.usage == usage):
            equal += 1
            continue
        wrong.append(f"{path} n={body.get('n', 1)} of {count}, stream={bool(body.get('stream'))}: "
                     f"{wanted} {usage}, proxy {got.status} {got.trouble} {got.choices} {got.usage} {got.message}")  # fmt: skip
    for line in wrong[:3]:
        world.note(line)
    if apart:
        world.note(f"{apart} were asked one by one of the undivided engine, which takes no several")
    return not wrong, f"{equal} of {equal + len(wrong)} equal"
