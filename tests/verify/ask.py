"""One request to a server that speaks OpenAI's and Anthropic's APIs, and what came back."""

import http.client
import json
import os
import socket
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Answer:
    """What a request came to. `trouble` says why it came to nothing: a limit passed, a stream without its end."""

    status: int = 0
    text: str = ""
    finish: str = ""
    usage: tuple = ()
    trouble: str = ""
    streamed: bool = False
    seconds: float = 0.0
    message: str = field(default="", compare=False)
    # Whose answer an error is, where the server says so; and the whole of an answer that came in one piece.
    source: str = field(default="", compare=False)
    rest: object = field(default=None, compare=False)
    # What each of several choices says and why it ended, by its index.
    choices: dict = field(default_factory=dict, compare=False)

    def content(self):
        """What two servers must agree on at temperature 0."""
        return self.status, self.text, self.finish, self.usage, self.trouble, self.streamed


class Server:
    """A base URL, dialled anew for every request so that no request inherits another's connection."""

    def __init__(self, url):
        parts = urlsplit(url if "//" in url else "http://" + url)
        if parts.scheme != "http" or not parts.hostname:
            raise SystemExit(f"{url}: not an http URL")
        self.host, self.port = parts.hostname, parts.port or 80
        self.url = f"http://{parts.netloc}"

    def __str__(self):
        return self.url

    def _connect(self, limit):
        return http.client.HTTPConnection(self.host, self.port, timeout=limit)

    def get(self, path, limit=10):
        """Status and text; raises OSError when nobody answers."""
        connection = self._connect(limit)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except http.client.HTTPException as error:
            raise OSError(repr(error)) from error
        finally:
            connection.close()

    def ask(self, path, body, limit=120.0):
        """Sends `body` and reads the whole answer; never raises for what a server does, and ends within `limit`."""
        answer, begun = Answer(), time.monotonic()
        connection = self._connect(limit)
        try:
            connection.request("POST", path, json.dumps(body), headers())
            response = connection.getresponse()
            answer.status = response.status
            answer.source = response.getheader("x-moriio-error-source") or ""
            answer.streamed = (response.getheader("content-type") or "").startswith("text/event-stream")
            raw = _read(connection, response, begun + limit)
            if response.status != 200:
                answer.message = raw.decode(errors="replace")[:1000]
            elif answer.streamed:
                _read_events(raw, answer)
            else:
                _read_object(raw, answer)
        except TimeoutError:
            answer.trouble = f"no end within {limit:.0f} s"
        except (OSError, http.client.HTTPException) as error:
            answer.trouble = f"connection broke: {type(error).__name__}"
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            answer.trouble = f"unreadable: {error!r}"
        finally:
            connection.close()
        answer.seconds = time.monotonic() - begun
        return answer

    def leave(self, path, body, after, first_byte=False, limit=60.0):
        """Sends `body` and hangs up `after` seconds later, or so long after the first event. Returns what was read."""
        payload = json.dumps(body).encode()
        head = "".join(f"{name}: {value}\r\n" for name, value in headers().items())
        head = f"POST {path} HTTP/1.1\r\nhost: {self.host}\r\n{head}content-length: {len(payload)}\r\n\r\n"
        seen = b""
        with socket.create_connection((self.host, self.port), timeout=limit) as connection:
            connection.sendall(head.encode() + payload)
            while first_byte and b"data: " not in seen:
                part = connection.recv(65536)
                if not part or (len(seen) > 12 and b" 200 " not in seen[:16]):
                    break
                seen += part
            time.sleep(after)
        return seen


def headers():
    """A key goes along where the environment has one, as every OpenAI client does it."""
    key = os.environ.get("OPENAI_API_KEY")
    return {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}


def _read(connection, response, deadline):
    """The body, with `deadline` for the whole of it: a server that trickles for ever is a hang, too."""
    parts = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if connection.sock:
            connection.sock.settimeout(left)
        part = response.read1(65536)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _usage(value):
    """Prompt and output tokens, by either of the names that APIs have for them."""
    if not value:
        return ()
    return value.get("prompt_tokens", value.get("input_tokens")), value.get("completion_tokens", value.get("output_tokens"))


def _text(choice):
    """All that a choice says, calls of tools included; token ids where an API has no text."""
    if choice.get("text") is not None:
        return choice["text"]
    said = choice.get("message") or choice.get("delta") or {}
    text = (said.get("reasoning") or "") + (said.get("content") or "")
    for call in said.get("tool_calls") or ():
        function = call.get("function") or {}
        text += (function.get("name") or "") + (function.get("arguments") or "")
    if not said and choice.get("token_ids"):
        text = "".join(f"{token} " for token in choice["token_ids"])
    return text


def _parts(items):
    """What the content blocks of a message, or the output items of a response, say."""
    for item in items or ():
        yield item.get("name") or ""
        yield item.get("arguments") or item.get("text") or item.get("thinking") or ""
        if item.get("input"):
            yield json.dumps(item["input"])
        if isinstance(item.get("content"), list):
            yield from _parts(item["content"])


def _response_end(value):
    """A response's status, and why it ended early."""
    return ":".join(filter(None, [value["status"], (value.get("incomplete_details") or {}).get("reason")]))


def _read_object(raw, answer):
    value = json.loads(raw)
    answer.rest = value
    answer.usage = _usage(value.get("usage"))
    if "choices" in value:
        choices = sorted(value["choices"], key=lambda choice: choice.get("index", 0))
        answer.choices = {choice.get("index", 0): (_text(choice), choice["finish_reason"]) for choice in choices}
        answer.text, answer.finish = "\n".join(map(_text, choices)), choices[0]["finish_reason"]
    elif value.get("type") == "message":
        answer.text, answer.finish = "".join(_parts(value["content"])), value["stop_reason"]
    else:
        answer.text, answer.finish = "".join(_parts(value["output"])), _response_end(value)


def events(raw):
    """The data of each server-sent event; comments, which keep a silent connection alive, are none."""
    for block in raw.decode().replace("\r\n", "\n").split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if not lines:
            continue
        data = [line[5:].lstrip() for line in lines if line.startswith("data:")]
        if len(data) != 1 or any(not line.startswith(("data:", "event:", "id:")) for line in lines):
            raise ValueError(f"not an event: {block[:60]!r}")
        yield data[0]


def _read_events(raw, answer):
    """Every API ends its streams in a way of its own; one that ends otherwise was cut."""
    done = False
    for data in events(raw):
        if done:
            raise ValueError(f"an event after the end: {data[:60]!r}")
        if data == "[DONE]":
            done = True
            continue
        value = json.loads(data)
        kind = value.get("type") or ""
        if "error" in value and kind in ("", "error") or kind in ("error", "response.failed"):
            answer.trouble = "error event"
            answer.message = data[:300]
            return
        if kind.startswith("response."):
            done = _response_event(kind, value, answer)
        elif kind:
            done = _message_event(kind, value, answer)
        else:
            answer.usage = _usage(value.get("usage")) or answer.usage
            for choice in value.get("choices", ()):
                answer.text += _text(choice)
                answer.finish = choice.get("finish_reason") or answer.finish
                said, end = answer.choices.get(choice.get("index", 0), ("", None))
                answer.choices[choice.get("index", 0)] = said + _text(choice), choice.get("finish_reason") or end
    if not done:
        answer.trouble = "stream ended without its end marker"


def _response_event(kind, value, answer):
    """One event of `/v1/responses`; true for the last."""
    if kind in ("response.completed", "response.incomplete"):
        answer.finish, answer.usage = _response_end(value["response"]), _usage(value["response"].get("usage"))
        return True
    if kind.endswith(".delta") and isinstance(value.get("delta"), str):
        answer.text += value["delta"]
    elif kind == "response.output_item.added":
        answer.text += (value.get("item") or {}).get("name") or ""
    return False


def _message_event(kind, value, answer):
    """One event of `/v1/messages`; true for the last."""
    if kind == "message_start":
        answer.usage = _usage(value["message"].get("usage"))
    elif kind == "content_block_start":
        answer.text += value["content_block"].get("name") or ""
    elif kind == "content_block_delta":
        delta = value["delta"]
        answer.text += delta.get("text") or delta.get("partial_json") or delta.get("thinking") or ""
    elif kind == "message_delta":
        answer.finish = value["delta"].get("stop_reason") or answer.finish
        usage = value.get("usage") or {}
        answer.usage = (answer.usage or (usage.get("input_tokens"),))[:1] + (usage.get("output_tokens"),)
    return kind == "message_stop"
