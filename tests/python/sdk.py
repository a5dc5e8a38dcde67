"""The official OpenAI SDK on command."""

import asyncio

import openai

import commands

clients = {}


def settings(command):
    # One attempt only: what the first one meets is what the test wants to see.
    return {"base_url": command["url"] + "/v1", "api_key": command.get("key", "none"), "max_retries": 0, "timeout": 60.0}


def told(operation):
    """An error of the SDK is a result: its class and those above it, and what it knows of the answer."""

    def run(command):
        try:
            return operation(command)
        except openai.APIError as error:
            return {
                "raised": [kind.__name__ for kind in type(error).__mro__],
                "status": getattr(error, "status_code", None),
                "code": error.code,
                "param": error.param,
                "type": error.type,
                "message": error.message,
            }

    return run


def create(client, command):
    chat = "messages" in command["body"]
    endpoint = client.chat.completions if chat else client.completions
    return endpoint.create(model="sim-model", temperature=0, **command["body"])


def piece(choice):
    """The text of a choice, whichever of the four shapes it has."""
    if hasattr(choice, "text"):
        return choice.text
    return (choice.delta if hasattr(choice, "delta") else choice.message).content


class Gathered:
    """What the chunks of a stream add up to."""

    def __init__(self):
        self.text, self.usage, self.chunks, self.finish = "", None, 0, None

    def take(self, chunk):
        self.chunks += 1
        for choice in chunk.choices:
            self.text += piece(choice) or ""
            self.finish = choice.finish_reason or self.finish
        if chunk.usage is not None:
            self.usage = chunk.usage.model_dump()

    def result(self):
        return {"text": self.text, "usage": self.usage, "chunks": self.chunks, "finish": self.finish}


def generate(command):
    with openai.OpenAI(**settings(command)) as client:
        answer, gathered = create(client, command), Gathered()
        for chunk in answer if command["body"].get("stream") else [answer]:
            gathered.take(chunk)
        return gathered.result()


async def stream(client, body):
    gathered = Gathered()
    async for chunk in await create(client, {"body": body}):
        gathered.take(chunk)
    return gathered.result()


def many(command):
    """All streams at once."""

    async def run():
        async with openai.AsyncOpenAI(**settings(command)) as client:
            return await asyncio.gather(*(stream(client, body) for body in command["bodies"]))

    return asyncio.run(run())


def models(command):
    with openai.OpenAI(**settings(command)) as client:
        first = client.models.retrieve("sim-model").id
        return [first] + [model.id for model in client.models.list()]


def embeddings(command):
    with openai.OpenAI(**settings(command)) as client:
        return client.embeddings.create(model="sim-model", input="x", encoding_format="float").model_dump()


operations = {"generate": generate, "many": many, "models": models, "embeddings": embeddings}
commands.serve({name: told(operation) for name, operation in operations.items()})
