#!/usr/bin/env python3
"""Replays a multi-turn trace with aiperf through the proxy, by one routing policy after the other.

    python3 tests/aiperf

MORIIO_PROXY_BINARY is the binary (target/debug/moriio-proxy). Needs Python 3.11 or newer with venv, and the first time an
index of packages: aiperf with all that it needs, 1.2 GB, is installed under the target directory. Nothing else is fetched.
Everything is on loopback and on free ports; logs and aiperf's files are in aiperf/run there. Nothing stays behind. Prints a
line a check and a table, takes three to six minutes, and exits with the number of checks that failed.

Agents of several teams, each team with a long system prompt and each agent with a prompt that grows turn by turn, ask four
simulated prefill engines with prefix caches and two decode engines, WRITE, eight agents at once. Each policy has a new proxy
and new engines. Every request must be answered whole, and nothing may be in flight or held after it. Engines, proxy and the
usage of answers must tell the same number of cached tokens. Turns of a session must stay where they should, by the
X-Correlation-ID that aiperf sends of itself. The hit rate must be clearly above that of round_robin without sessions. Times
depend on the machine and are not judged.
"""

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/launchers/real"))

import agents  # noqa: E402
import environment  # noqa: E402
import policies  # noqa: E402
import replay  # noqa: E402
from processes import alone  # noqa: E402

REQUIREMENTS = Path(__file__).parent / "requirements.txt"


def arguments():
    parser = argparse.ArgumentParser(
        prog="aiperf", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="of the trace (1)")
    names = [row.name for row in policies.ROWS]
    parser.add_argument("--row", choices=names, action="append", help="these and the first only; may be repeated")
    options = parser.parse_args()
    options.row = options.row or names
    return options


class World:
    """What every row needs."""

    def __init__(self, options):
        target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).absolute()
        self.binary = Path(os.environ.get("MORIIO_PROXY_BINARY", target / "debug/moriio-proxy")).absolute()
        if not os.access(self.binary, os.X_OK):
            raise OSError(f"{self.binary} is no program: set MORIIO_PROXY_BINARY")
        self.folder = target / "aiperf/run"
        self.lock = alone(self.folder.parent)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.python = environment.make(target / "aiperf", REQUIREMENTS)
        self.hub = replay.hub(self.python, self.folder / "hub")
        self.trace = agents.make(options.seed)
        self.file = self.trace.write(self.folder / "trace.jsonl")


def main():
    options = arguments()
    # Ended from outside, it still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        world = World(options)
    except OSError as error:
        sys.exit(f"aiperf: {error}")
    return policies.play(world, [row for row in policies.ROWS if row == policies.BASELINE or row.name in options.row])


if __name__ == "__main__":
    sys.exit(min(main(), 99))
