"""The APIs that generate text: a plain good request of each, and where its token limits stand."""

import texts


class Api:
    """One of them. What limits its answer stands in `limits`, the strongest first, and in the object `inside` where it has one."""

    def __init__(self, name, path, prompt, limits, stop, inside=None):
        self.name, self.path, self.prompt, self.limits, self.stop, self.inside = name, path, prompt, limits, stop, inside

    def request(self, model, prompt, tokens, stream=False):
        """A request that every engine answers, with as many tokens as asked for unless the model ends sooner."""
        if self.prompt in ("messages", "input"):
            prompt = [{"role": "user", "content": prompt}]
        sampling = {"temperature": 0, self.limits[-1]: tokens}
        body = {"model": model, self.prompt: prompt, **({self.inside: sampling} if self.inside else sampling)}
        if stream:
            body["stream"] = True
            if self.prompt not in ("messages", "input") or self is CHAT:
                body["stream_options"] = {"include_usage": True}
        return body

    def merged(self, body, addition):
        """`body` with the fields of `addition`; a name with a dot goes into that object."""
        body = dict(body)
        for name, value in addition.items():
            outer, _, inner = name.partition(".")
            if inner:
                body[outer] = {**body[outer], inner: value} if isinstance(body.get(outer), dict) else {inner: value}
            else:
                body[name] = value
        return body

    def budgeted(self, body):
        """What a proxy that asks decode for one token less lets it answer."""
        place = body.get(self.inside) if self.inside else body
        if not isinstance(place, dict):
            return body
        less = {name: max(1, place[name] - 1) for name in self.limits if _counts(place.get(name)) and place[name] > 0}
        limit = next((less[name] for name in self.limits if name in less), None)
        if limit is not None and _counts(place.get("min_tokens")):
            less["min_tokens"] = min(place["min_tokens"], limit)
        return {**body, self.inside: {**place, **less}} if self.inside else {**body, **less}


def _counts(value):
    return isinstance(value, int) and not isinstance(value, bool)


COMPLETIONS = Api("completions", "/v1/completions", "prompt", ["max_tokens"], "stop")
CHAT = Api("chat", "/v1/chat/completions", "messages", ["max_completion_tokens", "max_tokens"], "stop")
RESPONSES = Api("responses", "/v1/responses", "input", ["max_output_tokens"], "stop")
MESSAGES = Api("messages", "/v1/messages", "messages", ["max_tokens"], "stop_sequences")
GENERATE = Api(
    "generate", "/inference/v1/generate", "token_ids", ["max_tokens"], "sampling_params.stop", inside="sampling_params"
)
ALL = [COMPLETIONS, CHAT, RESPONSES, MESSAGES, GENERATE]


def of(path):
    return next(api for api in ALL if api.path == path)


def tokens_of(server, model, text):
    """The prompt as token ids, by the server's own tokenizer; of one without any, small numbers do."""
    answer = server.ask("/tokenize", {"model": model, "prompt": text}, 20)
    try:
        return [int(token) for token in answer.rest["tokens"]]
    except (TypeError, KeyError, ValueError):
        return [20 + len(word) for word in text.split()]


def prompt_for(api, server, model, text):
    return tokens_of(server, model, text) if api is GENERATE else text


def served(world, api):
    """Why an API cannot be compared; empty where both sides serve it."""
    prompt = prompt_for(api, world.single, world.model, texts.prompt(texts.generator(world.seed), 5))
    body = api.request(world.model, prompt, 2)
    for name, server in (("the undivided engine", world.single), ("the proxy", world.proxy)):
        answer = server.ask(api.path, body, world.limit)
        if answer.status in (403, 404, 405):
            return f"{name} answers {answer.status}"
    return ""
