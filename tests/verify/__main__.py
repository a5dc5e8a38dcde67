#!/usr/bin/env python3
"""Checks a proxy over running engines against one undivided engine of the same model, from outside.

    python3 tests/verify --proxy http://10.0.0.1:30000 --single http://10.0.0.9:8000 \\
        --prefill http://10.0.0.1:8000 --decode http://10.0.0.2:8000

Needs Python 3.9 and nothing else. Every engine's /metrics must be reachable. Nothing else may use the engines meanwhile:
what they hold is read from their own gauges. Prints a table and exits with the number of failed checks.

  equal      the same text, usage and finish reason as the undivided engine, for completions, chat, responses and messages,
             streamed and not
  several    requests for several answers, by `n` with a seed and by lists of prompts (texts and token ids), whole and
             streamed: each choice as the undivided engine's, and the usage
  orphans    clients that leave at every moment, requests that both engines or decode alone refuse: afterwards no engine
             holds a KV block or a request that it did not hold before
  fields     every field that the engines list for every API, one at a time, with ordinary and odd values, whole and
             streamed: the same text as the undivided engine's, or an error that names the field, and no engine that ends,
             goes deaf or keeps anything; --values 0 tries all values. With both --restart options it goes on after a harm
  refusals   legs that fail on one side, by the relays of tests/verify/between.py; with --refusals
  restarts   engines killed and started again under load; with --restart-prefill and --restart-decode, shell commands
             that return when the engine was started (it need not serve yet)
"""

import argparse
import functools
import json
import sys
import time

import apis
import equal
import fields
import orphans
import refusals
import restarts
import several
from ask import Server
from engines import Cluster

HELD = [("prefill", "hold-request", 0.4), ("prefill", "hold-answer", 0.9), ("decode", "hold-request", 0.9)]
# A decode that breaks off may still read, so nobody but prefill's timer (60 s) may free its blocks: no `cut` there.
ANSWERS = {"prefill": ["400", "500", "503", "cut"], "decode": ["400", "500", "503"]}


class World:
    """What every check needs: the servers, the engines and the numbers chosen on the command line."""

    def __init__(self, options):
        self.proxy, self.single = Server(options.proxy), Server(options.single)
        self.model = options.model or json.loads(self.single.get("/v1/models")[1])["data"][0]["id"]
        self.cluster = Cluster(self.proxy, options.prefill, options.decode, self.model, options.nudge)
        self.count, self.concurrency, self.seed = options.count, options.concurrency, options.seed
        self.budget, self.settle = options.decode_token_budget, options.settle
        self.limit, self.start_limit = options.limit, options.start_limit
        self.fields, self.values = tuple(options.field or ()), options.values
        self.field_limit = options.field_limit
        self.commands = {"prefill": options.restart_prefill, "decode": options.restart_decode}
        self.commands = {role: command for role, command in self.commands.items() if command}
        self.relays = {}
        if options.refusals:
            for engine in self.cluster.engines:
                self.relays.setdefault(engine.role, refusals.Relay(engine))

    @staticmethod
    def note(text):
        print(f"     {text[:600]}", flush=True)


def plan(world):
    """Every check by name, in the order in which they are made: restarts last."""
    yield "equal", equal.equal
    yield "equal, limits", equal.one_token
    yield "several answers", several.several
    yield "orphans, at once", orphans.leave_at_once
    yield "orphans, anywhere", orphans.leave_anywhere
    yield "orphans, mid-stream", orphans.leave_the_stream
    yield "orphans, refused by both", orphans.refused_by_both
    yield "orphans, refused by decode", orphans.refused_by_decode
    for api in apis.ALL:
        yield f"fields, {api.name}", functools.partial(fields.of_api, api=api)
    if world.relays:
        for role, action, after in HELD:
            check = functools.partial(orphans.leave_while_held, role=role, action=action, after=after)
            yield f"orphans, {role} {action}", check
        for role, actions in ANSWERS.items():
            for action in actions:
                yield f"refusals, {role} {action}", functools.partial(refusals.answered, role=role, action=action)
            yield f"refusals, {role} refused", functools.partial(refusals.refused, role=role)
    for role in world.commands:
        yield f"restarts, {role}", functools.partial(restarts.restart, role=role)
    yield "equal, at the end", equal.equal


def arguments():
    parser = argparse.ArgumentParser(
        prog="verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--proxy", required=True, metavar="URL")
    parser.add_argument("--single", required=True, metavar="URL", help="an engine of the same model without a KV connector")
    parser.add_argument("--prefill", required=True, action="append", metavar="URL", help="as registered; may be repeated")
    parser.add_argument("--decode", required=True, action="append", metavar="URL", help="as registered; may be repeated")
    parser.add_argument("--model", help="served name; the undivided engine's first when absent")
    parser.add_argument("--decode-token-budget", choices=["minus-one", "exact"], default="minus-one", help="the proxy's")
    parser.add_argument("--count", type=int, default=200, help="requests a check sends (200)")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at once (8)")
    parser.add_argument("--seed", type=int, default=1, help="of prompts and moments (1)")
    parser.add_argument("--settle", type=float, default=5, help="seconds until nothing may be held (5)")
    parser.add_argument("--limit", type=float, default=120, help="seconds after which a request counts as hung (120)")
    parser.add_argument("--start-limit", type=float, default=900, help="seconds for an engine to come back (900)")
    parser.add_argument("--field", action="append", metavar="NAME", help="fields only: those whose name begins so; may be repeated")
    parser.add_argument("--values", type=int, default=3, help="fields: values of each field (3), 0 for all")
    parser.add_argument("--field-limit", type=float, default=30, help="fields: seconds after which a request counts as hung (30)")
    parser.add_argument("--only", help="checks whose name begins so, separated by semicolons")
    parser.add_argument(
        "--nudge", choices=["proxy", "engine"], default="proxy",
        help="gauges move when an engine works: by exchanges, or by plain requests to each engine (0.24.0 or newer)",
    )
    parser.add_argument("--refusals", action="store_true", help="--prefill and --decode are relays (between.py)")
    parser.add_argument("--restart-prefill", metavar="COMMAND", help="restarts the first prefill engine")
    parser.add_argument("--restart-decode", metavar="COMMAND", help="restarts the first decode engine")
    return parser.parse_args()


def main():
    options = arguments()
    try:
        world = World(options)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise SystemExit(f"verify: {error}") from error
    wanted = tuple(options.only.split(";")) if options.only else ("",)
    rows = []
    for name, check in plan(world):
        if not name.startswith(wanted):
            continue
        begun = time.monotonic()
        try:
            passed, detail = check(world)
        except (OSError, ValueError) as error:
            passed, detail = False, f"could not be done: {error!r}"
        rows.append(passed)
        print(f"{'ok  ' if passed else 'FAIL'} {name:<28} {time.monotonic() - begun:6.1f} s  {detail}", flush=True)
    failed = rows.count(False)
    print(f"{len(rows)} checks, {failed} failed")
    return failed if rows else 1


if __name__ == "__main__":
    sys.exit(min(main(), 99))
