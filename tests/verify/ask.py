"""One request to a server that speaks the OpenAI API, and what came back."""

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
    seconds: float = 0.0
    message: str = field(default="", compare=False)

    def content(self):
        """What two servers must agree on at temperature 0."""
        return self.status, self.text, self.finish, self.usage, self.trouble


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
            raw = _read(connection, response, begun + limit)
            if response.status != 200:
                answer.message = raw.decode(errors="replace")[:300]
            elif body.get("stream"):
                _read_events(raw, answer)
            else:
                _read_object(raw, answer)
        except TimeoutError:
            answer.trouble = f"no end within {limit:.0f} s"
        except (OSError, http.client.HTTPException) as error:
            answer.trouble = f"connection broke: {type(error).__name__}"
        except (ValueError, KeyError, IndexError, TypeError) as error:
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
    return (value["prompt_tokens"], value["completion_tokens"]) if value else ()


def _text(choice):
    if "text" in choice:
        return choice["text"]
    return (choice.get("message") or choice.get("delta") or {}).get("content") or ""


def _read_object(raw, answer):
    value = json.loads(raw)
    choice = value["choices"][0]
    answer.text, answer.finish = _text(choice), choice["finish_reason"]
    answer.usage = _usage(value.get("usage"))


def _read_events(raw, answer):
    done = False
    for event in raw.decode().split("\n\n"):
        if not event.strip():
            continue
        if not event.startswith("data: "):
            raise ValueError(f"not an event: {event[:60]!r}")
        if event == "data: [DONE]":
            done = True
            continue
        value = json.loads(event[6:])
        if "error" in value:
            answer.trouble = "error event"
            answer.message = event[:300]
            return
        answer.usage = _usage(value.get("usage")) or answer.usage
        for choice in value.get("choices", ()):
            answer.text += _text(choice)
            answer.finish = choice.get("finish_reason") or answer.finish
    if not done:
        answer.trouble = "stream ended without [DONE]"
