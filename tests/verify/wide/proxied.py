"""The same through the proxy, which has to say by itself what the other checks write by hand."""

import concurrent.futures
import http.client
import json
import random
import re
import time

import hosts
from stage import HTTP, PROXY, DECODE, PREFILL, Stage, get, post

PATH = "/v1/completions"


def listed(addresses: list[str], children: str) -> str:
    """An engine's entry of `--engine-hosts`."""
    rest = [f"{address}:{HTTP}" if children == "http" else address for address in addresses[1:]]
    return f"{addresses[0]}:{HTTP}={','.join([addresses[0], *rest])}@1"


def start(stage: Stage, binary, contract: str) -> None:
    """A proxy that both engines have registered with."""
    stage.end("proxy")
    stage.start("proxy", hosts.OUTSIDE, [
        binary, "serve", "--host", hosts.OUTSIDE, "--port", PROXY, "--ping-host", hosts.OUTSIDE,
        "--decode-token-budget", "exact", "--write-contract", contract,
        "--engine-hosts", listed(PREFILL, stage.children), "--engine-hosts", listed(DECODE, stage.children)])
    until = time.monotonic() + 60
    while True:
        try:
            if json.loads(get(f"{hosts.OUTSIDE}:{PROXY}", "/ready"))["status"] == "ready":
                return
        except OSError:
            pass
        if time.monotonic() > until:
            raise SystemExit(f"no pair at the proxy; logs in {stage.work}")
        time.sleep(0.5)


def served(stage: Stage) -> dict[str, float]:
    """Requests that each rank has ended, by its engine and number."""
    found = {}
    for role, addresses in (("prefill", PREFILL), ("decode", DECODE)):
        places = addresses if stage.children == "http" else addresses[:1]
        for place in places:
            text = get(f"{place}:{HTTP}", "/metrics")
            for rank, count in re.findall(r'vllm:request_success_total\{[^}]*engine="(\d+)"[^}]*\} (\S+)', text):
                # A child that serves may count its only rank from 0.
                name = f"{role} {addresses.index(place) if stage.children == 'http' else rank}"
                found[name] = found.get(name, 0) + float(count)
    return found


def leave(count: int) -> None:
    """Clients that are gone after a moment, at every stage of an exchange."""
    rng = random.Random(5)

    def one(number: int) -> None:
        client = http.client.HTTPConnection(hosts.OUTSIDE, PROXY, timeout=30)
        body = {"model": "tiny", "prompt": f"{number} " + "the proxy " * 60, "max_tokens": 64, "ignore_eos": True, "stream": True}
        client.request("POST", PATH, json.dumps(body), {"content-type": "application/json"})
        time.sleep(rng.random() * 0.8)
        client.sock.close()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(count)))


def messages() -> dict[str, int]:
    """What the proxy counted of releases and wakes."""
    text = get(f"{hosts.OUTSIDE}:{PROXY}", "/metrics")
    lines = re.findall(r'moriio_kv_messages_total\{kind="(\w+)",outcome="(\w+)"\} (\d+)', text)
    return {f"{kind} {outcome}": int(number) for kind, outcome, number in lines if int(number)}


def check(checks, binary) -> None:
    """`checks` compares and counts, as for what is written by hand."""
    stage = checks.stage
    for contract in ("leader", "same-rank") if stage.mode == "write" else ("leader",):
        start(stage, binary, contract)
        before = served(stage)
        for at_once in (1, 8):
            checks.equal(f"through the proxy, {contract}, {at_once} at once",
                         lambda _, body: post(f"{hosts.OUTSIDE}:{PROXY}", PATH, body), at_once)
        after = served(stage)
        ranks = {name: int(count - before.get(name, 0)) for name, count in after.items()}
        checks.say(f"every rank at work, {contract}", len(ranks) == 4 and min(ranks.values()) > 0, f"{ranks}")
        checks.free(f"through the proxy, {contract}", 90)
        leave(checks.count)
        checks.free(f"after {checks.count} clients that left, {contract}", 90)
        told = messages()
        wrong = {what: number for what, number in told.items() if not what.endswith("sent")}
        checks.say(f"releases and wakes, {contract}", not wrong, f"{told or 'none needed'}")
        checks.equal(f"through the proxy after that, {contract}", lambda _, body: post(f"{hosts.OUTSIDE}:{PROXY}", PATH, body), 8)
    stage.end("proxy")
