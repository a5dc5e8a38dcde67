"""Takes commands from the test, one JSON object a line, and answers each with one line."""

import json
import queue
import sys
import threading


def _read(lines):
    for line in sys.stdin:
        lines.put(line)
    lines.put(None)


def serve(operations, idle=lambda: None, tick=0.05):
    """Runs `operations[command["do"]](command)` for each command; between commands `idle` runs every `tick` seconds."""
    lines = queue.Queue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=tick)
        except queue.Empty:
            idle()
            continue
        if line is None:
            return
        command = json.loads(line)
        try:
            answer = {"result": operations[command["do"]](command)}
        except Exception as error:  # The test shows it and fails.
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
        idle()
