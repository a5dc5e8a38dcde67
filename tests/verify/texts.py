"""Requests to send: short and long, completions and chat, streamed and not."""

import random

WORDS = "the proxy prefill decode engine token request answer block rank leg peer what why when how many".split()


def prompt(rng, words):
    return " ".join(rng.choices(WORDS, k=words))


def request(rng, model, number, tokens=24, words=None):
    """The path and body of the `number`-th request; the kinds take turns."""
    text = prompt(rng, words or rng.choice([1, 5, 20, 60, 200]))
    body = {"model": model, "temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    if number % 4 >= 2:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if number % 2:
        return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": text}]}
    return "/v1/completions", body | {"prompt": text}


def long_request(rng, model, number, tokens=40):
    """One whose blocks are missed if nobody frees them: some 200 words."""
    return request(rng, model, number, tokens, words=200)


def generator(seed):
    return random.Random(seed)
