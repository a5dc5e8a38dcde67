#!/usr/bin/env python3
"""A relay that stands between the proxy and one engine and does what an engine does only when something is wrong.

    between.py --listen 10.0.0.1:9001 --engine 10.0.0.1:8000 --role prefill

Give the engine the relay's port as `http_port` in kv_connector_extra_config, so that it registers under it; the engine
itself keeps listening on its own (`--port`). Everything passes unchanged, but for requests whose `user` field says
otherwise: `between:ROLE:ACTION[:SECONDS]` makes the relay of that role

    400, 500, 503        answer so, without asking the engine
    cut                  close the connection instead of an answer, without asking the engine
    hold-request:S       pass the request on after S seconds
    hold-answer:S        pass the answer on after S seconds
    spoil:S              pass everything, then break the stream S seconds after its first byte

`POST /between/refuse?S` refuses connections for S seconds; `GET /between` tells how often each action was done.
"""

import argparse
import asyncio
import json
import re

MARK = re.compile(rb'"user"\s*:\s*"between:(\w+):([\w-]+)(?::([\d.]+))?"')
LIMIT = 64 * 1024


class Relay:
    def __init__(self, listen, engine, role):
        self.listen, self.engine, self.role = listen, engine, role
        self.done, self.open, self.server, self.task = {}, set(), None, None

    async def serve(self):
        self.server = await asyncio.start_server(self.client, *self.listen, limit=LIMIT)

    async def refuse(self, seconds):
        """Closes the port and what is open without a byte under way, as an engine that is not there."""
        self.server.close()
        for writer in list(self.open):
            writer.transport.abort()
        self.count("refuse")
        await asyncio.sleep(seconds)
        await self.serve()

    def count(self, action):
        self.done[action] = self.done.get(action, 0) + 1

    async def client(self, reader, writer):
        self.open.add(writer)
        try:
            await self.requests(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass
        finally:
            self.open.discard(writer)
            writer.close()

    async def requests(self, reader, writer):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?im)^content-length:\s*(\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            if head.startswith((b"GET /between ", b"POST /between/")):
                await self.control(head, writer)
                continue
            # The engine closes after each answer, so the end of the answer is the end of its connection.
            head = re.sub(rb"(?im)^connection:[^\r]*\r\n", b"", head)
            head = head[:-2] + b"connection: close\r\n\r\n"
            self.open.discard(writer)
            await self.exchange(head, body, reader, writer)
            return

    async def control(self, head, writer):
        path = head.split()[1].decode()
        if path.startswith("/between/refuse?"):
            self.task = asyncio.create_task(self.refuse(float(path.split("?")[1])))
            self.open.discard(writer)
        await answer(writer, 200, {"role": self.role, "done": self.done})

    async def exchange(self, head, body, reader, writer):
        action, seconds = "", 0.0
        if (mark := MARK.search(body)) and mark[1].decode() == self.role:
            action, seconds = mark[2].decode(), float(mark[3] or 0)
            self.count(action)
        if action.isdigit():
            await answer(writer, int(action), {"error": {"message": "said between", "type": "between", "code": int(action)}})
            return
        if action == "cut":
            writer.transport.abort()
            return
        # Whoever leaves first ends the other side: that is what an engine sees of a proxy that leaves.
        left = asyncio.create_task(reader.read(1))
        passed = asyncio.create_task(self.through(head + body, action, seconds, writer))
        await asyncio.wait({left, passed}, return_when=asyncio.FIRST_COMPLETED)
        for task in (left, passed):
            task.cancel()
        await asyncio.gather(left, passed, return_exceptions=True)

    async def through(self, request, action, seconds, writer):
        if action == "hold-request":
            await asyncio.sleep(seconds)
        reader, upstream = await asyncio.open_connection(*self.engine)
        try:
            upstream.write(request)
            ends = None
            while part := await reader.read(LIMIT):
                now = asyncio.get_running_loop().time()
                if action == "hold-answer" and ends is None:
                    await asyncio.sleep(seconds)
                ends = ends or now + seconds
                if action == "spoil" and now >= ends:
                    writer.transport.abort()
                    return
                writer.write(part)
                await writer.drain()
        finally:
            upstream.transport.abort()


async def answer(writer, status, body):
    payload = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Between\r\ncontent-type: application/json\r\ncontent-length: {len(payload)}\r\n"
    head += "connection: close\r\n\r\n"
    writer.write(head.encode() + payload)
    await writer.drain()


def address(text):
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", type=address, required=True, metavar="HOST:PORT")
    parser.add_argument("--engine", type=address, required=True, metavar="HOST:PORT")
    parser.add_argument("--role", choices=["prefill", "decode"], required=True)
    options = parser.parse_args()
    relay = Relay(options.listen, options.engine, options.role)
    await relay.serve()
    await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
