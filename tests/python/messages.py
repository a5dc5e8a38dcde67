"""The official Anthropic SDK on command."""

import functools

import anthropic

import commands


@functools.cache
def client(url, key, header):
    """A client is costly to make and kept."""
    # One attempt only: what the first one meets is what the test wants to see.
    settings = {"base_url": url, "max_retries": 0, "timeout": 60.0}
    if header == "token":
        settings["auth_token"] = key
    else:
        settings["api_key"] = key
    if header == "x-api-key":
        # Where the SDK's older releases and many other clients put the key.
        settings["default_headers"] = {"x-api-key": key, "authorization": anthropic.omit}
    return anthropic.Anthropic(**settings)


def told(operation):
    """An error of the SDK is a result: its class and those above it, and what it knows of the answer."""

    def run(command):
        try:
            return operation(client(command["url"], command["key"], command["header"]), command["body"])
        except anthropic.APIError as error:
            inner = error.body.get("error") if isinstance(error.body, dict) else None
            return {
                "raised": [kind.__name__ for kind in type(error).__mro__],
                "status": getattr(error, "status_code", None),
                "type": getattr(error, "type", None),
                "code": inner.get("code") if isinstance(inner, dict) else None,
                "message": getattr(error, "api_message", None) or error.message,
            }

    return run


def given(body):
    """The body as arguments. What the SDK has no argument for goes beside them, as its users are told to send it."""
    return {key: value for key, value in body.items() if key != "temperature"} | {
        "extra_body": {key: value for key, value in body.items() if key == "temperature"}
    }


def result(message):
    blocks = [block.model_dump(mode="json", exclude_none=True) for block in message.content]
    usage = message.usage.model_dump(exclude_none=True)
    return {"blocks": blocks, "stop_reason": message.stop_reason, "usage": usage, "role": message.role}


def whole(sdk, body):
    return result(sdk.messages.create(model="sim-model", **given(body)))


def beta(sdk, body):
    return result(sdk.beta.messages.create(model="sim-model", betas=["some-feature-2026-01-01"], **given(body)))


def stream(sdk, body):
    """The helper that most programs use: texts as they come, and the message that they add up to."""
    names = []
    with sdk.messages.stream(model="sim-model", **given(body)) as events:
        for event in events:
            names.append(event.type)
        return result(events.get_final_message()) | {"events": names}


def events(sdk, body):
    """The bare events, added up by hand."""
    names, text, arguments, usage, stop_reason = [], "", "", None, None
    for event in sdk.messages.create(model="sim-model", stream=True, **given(body)):
        names.append(event.type)
        if event.type == "content_block_delta":
            text += getattr(event.delta, "text", "")
            arguments += getattr(event.delta, "partial_json", "")
        if event.type == "message_delta":
            usage, stop_reason = event.usage.model_dump(exclude_none=True), event.delta.stop_reason
    return {"events": names, "text": text, "arguments": arguments, "usage": usage, "stop_reason": stop_reason}


def count(sdk, body):
    return sdk.messages.count_tokens(model="sim-model", **given(body)).input_tokens


operations = {"whole": whole, "beta": beta, "stream": stream, "events": events, "count": count}
commands.serve({name: told(operation) for name, operation in operations.items()})
