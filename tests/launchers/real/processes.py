"""Processes that are started here, ports, waiting with a limit, and the folder of a run."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

# Nothing here is asked through the proxy of a company's network.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Child:
    """A process with all its output in one file. It leads a group of its own, so that nothing it starts outlives it."""

    every = []

    def __init__(self, command, log, **more):
        self.log = log
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **more
            )
        self.ended = False
        Child.every.append(self)

    def alive(self):
        return self.process.poll() is None

    def said(self):
        return self.log.read_text(errors="replace")

    def signal(self, number, limit):
        """Its exit code after the signal, None when it is still there `limit` seconds later."""
        if self.alive():
            self.process.send_signal(number)
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            return None

    def end(self):
        """Whatever is left of the group, at once; never twice, since its number may be another's by then."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.ended = True


def run(command, log, limit, **more):
    """The exit code of a command that must end within `limit` seconds, and what it printed."""
    child = Child(command, log, **more)
    try:
        return child.process.wait(limit), child.said()
    except subprocess.TimeoutExpired:
        return None, child.said()
    finally:
        child.end()


def left_over():
    """Ends all that was started here, and says what is there nevertheless: process numbers."""
    standing = [child for child in Child.every if not child.ended]
    for child in standing:
        child.end()
    groups = {child.process.pid for child in standing}
    wait_for(lambda: not _members(groups), 5)
    return _members(groups)


def _members(groups):
    """Running processes of these groups; one that ended but that nobody has asked for its end is none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = path.read_text(errors="replace").rpartition(")")[2].split()[:3]
            if int(group) in groups and state not in "ZX":
                found.append(int(path.parent.name))
    return found


def wait_for(condition, limit, pause=0.2):
    """The condition's first true value, else its last one after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(pause)
    return value


def free_ports(count):
    """Ports of loopback that nobody has at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def is_open(port):
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def get(url, limit=5, body=None):
    """Status and text, 0 and the reason when nobody answers."""
    request = urllib.request.Request(url, body, {"content-type": "application/json"} if body else {})
    try:
        with _DIRECT.open(request, timeout=limit) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace")
    except OSError as error:
        return 0, str(error)


def offline():
    """The environment for every process here: no hub is asked for anything, no key of the caller's goes anywhere."""
    hidden = ("OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def alone(folder):
    """A lock on the folder that lasts as long as this process: a second run would take the first one's files away."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(f"another run uses {folder}") from error
    return lock
