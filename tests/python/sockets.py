"""libzmq's sockets on command: what an engine's heartbeat does, and what strangers do to its port."""

import collections
import socket
import time
import urllib.request

import msgpack
import zmq
from zmq.utils.monitor import recv_monitor_message

import commands

PATIENCE = 60.0
EVENTS = {
    "connected": zmq.EVENT_CONNECTED,
    "handshake": zmq.EVENT_HANDSHAKE_SUCCEEDED,
    "disconnected": zmq.EVENT_DISCONNECTED,
}

context = zmq.Context()
peers = {}


class Peer:
    """A socket, what happened to its connection, and the ping it repeats by itself."""

    def __init__(self, command):
        self.socket = context.socket(getattr(zmq, command["kind"]))
        self.socket.linger = 0
        self.socket.sndtimeo = int(PATIENCE * 1000)
        if "heartbeat" in command:
            self.socket.heartbeat_ivl = command["heartbeat"]
            # Long, so that a starved machine is not taken for a dead peer.
            self.socket.heartbeat_timeout = 30_000
        self.monitor = self.socket.get_monitor_socket()
        self.seen = collections.Counter()
        self.pings = 0
        self.ping = None
        self.interval = None
        self.due = 0.0
        self.socket.connect(f"tcp://{command['address']}")

    def look(self):
        """Takes note of the connection's events."""
        while self.monitor.poll(0):
            self.seen[recv_monitor_message(self.monitor)["event"]] += 1

    def send(self, frames):
        """Sends one message. A map with an `index` is a ping of the old wording, which counts itself."""
        self.pings += 1
        self.socket.send_multipart([encode(frame, self.pings) for frame in frames])

    def beat(self, now):
        """Repeats the ping when its time has come."""
        if self.ping is not None and now >= self.due:
            self.due = now + self.interval
            self.send(self.ping)


def encode(frame, pings):
    """A frame's bytes, as the command describes them."""
    if "hex" in frame:
        return bytes.fromhex(frame["hex"])
    if "zeros" in frame:
        return bytes(frame["zeros"])
    value = frame["pack"]
    if isinstance(value, dict) and "index" in value:
        value = {**value, "index": str(pings)}
    packed = msgpack.packb(value)
    return packed[: len(packed) - frame.get("short_by", 0)]


def open_peer(command):
    peers[command["name"]] = Peer(command)


def send(command):
    for _ in range(command.get("times", 1)):
        peers[command["name"]].send(command["frames"])


def repeat(command):
    peer = peers[command["name"]]
    peer.ping, peer.interval, peer.due = command["frames"], command["seconds"], 0.0


def quiet(command):
    peers[command["name"]].ping = None


def until(command):
    """Waits until the connection has seen an event so many times."""
    peer, deadline = peers[command["name"]], time.monotonic() + PATIENCE
    while True:
        peer.look()
        if peer.seen[EVENTS[command["event"]]] >= command["count"]:
            return peer.seen[EVENTS[command["event"]]]
        if time.monotonic() > deadline:
            raise TimeoutError(f"{command['event']} not {command['count']} times: {dict(peer.seen)}")
        time.sleep(0.01)


def until_down(command):
    """Waits until every connection that came about has ended; gives their number."""
    peer = peers[command["name"]]
    peer.look()
    until({**command, "event": "disconnected", "count": max(1, peer.seen[EVENTS["handshake"]])})
    return peer.seen[EVENTS["handshake"]]


def received(command):
    """Whether anything has come back."""
    return bool(peers[command["name"]].socket.poll(0))


def close(command):
    peer = peers.pop(command["name"])
    peer.socket.disable_monitor()
    peer.monitor.close()
    peer.socket.close()


def raw(command):
    """Plain TCP: writes bytes, then reads until the other side closes or until `wanted` has come."""
    host, port = command["address"].rsplit(":", 1)
    wanted, heard = bytes.fromhex(command.get("wanted", "")), b""
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as stream:
        try:
            stream.sendall(bytes.fromhex(command["hex"]))
            while not (wanted and wanted in heard):
                part = stream.recv(4096)
                if not part:
                    break
                heard += part
        except ConnectionError:
            pass
    return heard.hex()


def get(command):
    """Takes the port for an HTTP server."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{command['address']}/health", timeout=PATIENCE) as answer:
            return answer.status
    except TimeoutError:
        raise
    except Exception as error:  # Whichever way it is refused.
        return type(error).__name__


def beat():
    now = time.monotonic()
    for peer in peers.values():
        peer.beat(now)


commands.serve(
    {
        "open": open_peer,
        "send": send,
        "repeat": repeat,
        "quiet": quiet,
        "until": until,
        "until_down": until_down,
        "received": received,
        "close": close,
        "raw": raw,
        "get": get,
    },
    idle=beat,
)
