#!/usr/bin/env python3
"""Starts the proxy as launchers start vllm-router, and puts on it what they do: lm-eval and `vllm bench serve`.

    python3 tests/launchers/real --simulated
    python3 tests/launchers/real --realvllm DIR

MORIIO_PROXY_BINARY is the binary (target/debug/moriio-proxy). Needs Python 3.11 with venv, and the first time an index of
packages: lm-eval with all that it needs is installed under the target directory. Everything is on loopback and on free
ports; logs are in launchers/run there. Nothing stays behind. Prints a line a check and exits with the number that failed.

DIR (or REALVLLM) is a kit of real engines on the CPU: env.sh, which has MODEL, SINGLE, p_http and d_http; stack.sh with
`single`, `up read|write P D` and `down`; vllm.sh, the engines' own `vllm`. `vllm bench serve` comes from there: with
simulated engines it is run where a kit is named, too, and left out where none is. Loglikelihoods are left out with
simulated engines, which have none for a prompt; and their undivided engine, which takes no lists, is asked one by one.

  vllm-ci    vLLM's .buildkite/amd-disagg: router first, in a login shell; then engines, until each one's /health is 200;
             lm_eval with 64 requests at once, of one prompt and of eight, as texts and as tokens: answers that are texts,
             and loglikelihoods, which prefill tells alone; score and every single one equal to the undivided engine's,
             and in the router's log the lists that were meant; bench with exact token counts; SIGKILL
  mad        ROCm/MAD's scripts/vllm_dissag: router after engines, static URLs beside discovery; until its log says Add
             Prefill and Add Decode; a completion without model; bench; SIGTERM
"""

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path

import environment
import rows
from engines import Real, Simulated, kit_from
from processes import alone, free_ports

ROOT = Path(__file__).resolve().parents[3]


def arguments():
    parser = argparse.ArgumentParser(
        prog="launchers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulated", action="store_true", help="`moriio-proxy sim` in place of real engines")
    parser.add_argument("--realvllm", metavar="DIR", help="the kit of real engines (REALVLLM)")
    parser.add_argument("--mode", choices=["read", "write"], default="write", help="who moves the KV (write, as in CI)")
    parser.add_argument("--ranks", type=int, default=1, help="data-parallel ranks of simulated engines (1; CI's EP has 8)")
    parser.add_argument("--row", choices=list(rows.ALL), action="append", help="these launchers only; may be repeated")
    parser.add_argument("--tool", choices=rows.TOOLS, action="append", help="these tools only; may be repeated")
    options = parser.parse_args()
    options.realvllm = options.realvllm or os.environ.get("REALVLLM")
    if not options.simulated and not options.realvllm:
        parser.error("--realvllm DIR or --simulated")
    if options.ranks != 1 and not options.simulated:
        parser.error("--ranks: real engines on a CPU have one")
    return options


class World:
    """What every row needs."""

    def __init__(self, options):
        target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).absolute()
        self.binary = Path(os.environ.get("MORIIO_PROXY_BINARY", target / "debug/moriio-proxy")).absolute()
        if not os.access(self.binary, os.X_OK):
            raise OSError(f"{self.binary} is no program: set MORIIO_PROXY_BINARY")
        self.kit = kit_from(options.realvllm) if options.realvllm else None
        self.tools = options.tool or rows.TOOLS
        self.folder = target / "launchers/run"
        self.lock = alone(self.folder.parent)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.python = environment.make(target / "launchers")
        (self.registration,) = free_ports(1)
        if options.simulated:
            self.engines = Simulated(self.binary, options.mode, options.ranks, self.python, self.folder)
        else:
            self.engines = Real(self.kit, options.mode, self.folder)


def main():
    options = arguments()
    # Ended from outside, it still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        world = World(options)
    except OSError as error:
        sys.exit(f"launchers: {error}")
    return rows.play(world, options.row or list(rows.ALL))


if __name__ == "__main__":
    sys.exit(min(main(), 99))
