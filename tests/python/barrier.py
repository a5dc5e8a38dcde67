"""Waits and watches as job scripts do: port probes that connect and close, and GET /health with a limit of 2 s.

One line is written after every round. A step back from healthy ends the script with an error, as it ends the job; a closed
port is the sign to stop.
"""

import json
import socket
import sys
import time
import urllib.error
import urllib.request

INTERVAL = 0.2
LIMIT = 2.0

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def port_open(host, port):
    try:
        with socket.create_connection((host, port), timeout=LIMIT):
            return True
    except ConnectionRefusedError:
        return False


def health(host, port):
    """The status, or what came instead."""
    try:
        with opener.open(f"http://{host}:{port}/health", timeout=LIMIT) as answer:
            answer.read()
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        return repr(error)


def main():
    host, port = sys.argv[1], int(sys.argv[2])
    was_healthy, rounds = False, 0
    while port_open(host, port):
        status = health(host, port)
        if status == 200:
            was_healthy = True
        elif not port_open(host, port):
            break  # It closed between the two probes.
        elif was_healthy:
            print(json.dumps({"regression": status, "rounds": rounds}), flush=True)
            sys.exit(1)
        rounds += 1
        print(json.dumps({"rounds": rounds, "healthy": was_healthy}), flush=True)
        time.sleep(INTERVAL)
    print(json.dumps({"closed": True, "rounds": rounds}), flush=True)


main()
