#!/usr/bin/env python3
"""Shows on real engines what docs/protocol.md says of engines over several hosts: two engines of two hosts with a rank each, in
network namespaces, driven by hand as the proxy does it and then through the proxy, beside an undivided engine.

    sudo python3 tests/verify/wide --kit REALVLLM --home REALVLLM_HOME --mode write --children headless --proxy BINARY

Needs root, Linux's `ip`, a folder with vLLM's build for CPUs and a stand-in for RDMA. Prints a line for each check, and exits
with the number of failed ones.
"""

import argparse
import concurrent.futures
import random
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import hosts  # noqa: E402
import proxied  # noqa: E402
from stage import DECODE, HANDSHAKE, HTTP, NOTIFY, PREFILL, SINGLE, Stage, get, post  # noqa: E402

WORDS = "the proxy prefill decode engine token request answer block rank leg peer what why when how many".split()
PATH = "/v1/completions"


def params(transfer: str, load: bool, peer: list[str]) -> dict:
    """What both legs of WRITE have, and prefill's of READ."""
    return {
        "do_remote_decode": not load, "do_remote_prefill": load, "transfer_id": transfer,
        "remote_engine_id": f"{peer[0]}:{HANDSHAKE}" if load else None, "remote_block_ids": [] if load else None,
        "remote_host": peer[0], "remote_port": HANDSHAKE, "remote_handshake_port": HANDSHAKE, "remote_notify_port": NOTIFY,
        "remote_hosts": peer, "remote_dp_size": 2, "remote_dp_size_local": 1, "remote_tp_size": 1, "tp_size": 1,
    }


def door(stage: Stage, addresses: list[str], rank: int) -> tuple[str, dict]:
    """Where a leg for a rank is posted, and with which header."""
    if stage.children == "http":
        return f"{addresses[rank]}:{HTTP}", {}
    return f"{addresses[0]}:{HTTP}", {"X-data-parallel-rank": str(rank)}


def write(stage: Stage, body: dict, contract: str, prefill_rank: int, decode_rank: int | None):
    transfer, plain = f"tx-{uuid.uuid4()}", uuid.uuid4().hex
    first = {**body, "max_tokens": 1, "kv_transfer_params": params(transfer, False, DECODE)}
    load = params(transfer, True, PREFILL) | {"remote_dp_rank": prefill_rank}
    load |= {"is_request_leader": True} if contract == "leader" else {"remote_dp_rank_override": True}
    where, header = door(stage, PREFILL, prefill_rank)
    to, pinned = (f"{DECODE[0]}:{HTTP}", {}) if decode_rank is None else door(stage, DECODE, decode_rank)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answer = pool.submit(post, to, PATH, {**body, "kv_transfer_params": load}, {"X-Request-Id": plain, **pinned})
        status, said = post(where, PATH, first, {"X-Request-Id": plain, **header})
        return (status, said) if status != 200 else answer.result()


def read(stage: Stage, body: dict, prefill_rank: int, decode_rank: int | None):
    transfer, plain = f"tx-{uuid.uuid4()}", uuid.uuid4().hex
    where, header = door(stage, PREFILL, prefill_rank)
    first = {**body, "max_tokens": 1, "kv_transfer_params": params(transfer, False, DECODE)}
    status, said = post(where, PATH, first, {"X-Request-Id": plain, **header})
    if status != 200:
        return status, said
    load = said["kv_transfer_params"]
    if load["remote_dp_rank"] != prefill_rank or load["remote_host"] != PREFILL[prefill_rank]:
        return 0, f"asked rank {prefill_rank}: {load}"
    # As an engine of one rank: one rank a host leaves the ports as they are.
    load |= {"remote_dp_rank": 0, "remote_dp_size": 1}
    del load["remote_dp_size_local"]
    to, pinned = (f"{DECODE[0]}:{HTTP}", {}) if decode_rank is None else door(stage, DECODE, decode_rank)
    return post(to, PATH, {**body, "kv_transfer_params": load}, {"X-Request-Id": plain, **pinned})


class Checks:
    """What was checked, and how much of it failed."""

    def __init__(self, stage: Stage, count: int):
        self.stage, self.count, self.failed = stage, count, 0

    def say(self, name: str, good: bool, what: str):
        self.failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {name}: {what}", flush=True)

    def equal(self, name: str, exchange, at_once: int):
        """So many texts, each against the undivided engine's."""
        rng, single = random.Random(3), f"{hosts.OUTSIDE}:{SINGLE}"

        def one(number: int):
            prompt = " ".join(rng.choices(WORDS, k=rng.choice([1, 5, 20, 60, 200])))
            body = {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 24, "ignore_eos": True}
            _, wanted = post(single, PATH, body)
            status, said = exchange(number, body)
            if status != 200:
                return f"{status} {said}"[:300]
            same = said["choices"][0]["text"] == wanted["choices"][0]["text"] and said["usage"] == wanted["usage"]
            return "" if same else f"{said['choices'][0]['text']!r} for {wanted['choices'][0]['text']!r}"

        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            wrong = [trouble for trouble in pool.map(one, range(self.count)) if trouble]
        self.say(name, not wrong, f"{self.count - len(wrong)} of {self.count} equal{': ' if wrong else ''}{wrong[:1] or ''}")

    def free(self, name: str, limit: float):
        """No host holds a block. Gauges move with steps, so that each rank is given a small one."""
        begin = time.monotonic()
        while True:
            for rank in (0, 1):
                body = {"model": "tiny", "prompt": "a", "max_tokens": 2, "ignore_eos": True, "temperature": 0}
                if self.stage.mode == "write":
                    write(self.stage, body, "leader", rank, rank)
                else:
                    read(self.stage, body, rank, rank)
            held = {}
            for where in self.stage.serving()[:-1]:
                used = re.findall(r'vllm:kv_cache_usage_perc\{[^}]*engine="(\d+)"[^}]*\} (\S+)', get(where, "/metrics"))
                held |= {f"{where} rank {rank}": float(part) for rank, part in used if float(part) > 0}
            seconds = time.monotonic() - begin
            if not held or seconds > limit:
                return self.say(name, not held, f"held {held or 'nothing'} after {seconds:.1f} s")
            time.sleep(0.5)

    def message(self, address: str, kind: dict):
        """One message to a notify port, as the proxy sends it."""
        code = ("import msgpack,sys,zmq\ns=zmq.Context().socket(zmq.DEALER)\ns.setsockopt(zmq.LINGER,2000)\n"
                f"s.connect('tcp://{address}:{NOTIFY}')\ns.send(msgpack.dumps({kind!r}))\ns.close()\nzmq.Context.instance().term()")
        subprocess.run([self.stage.python, "-c", code], check=True, timeout=20)

    def release(self):
        """A prefill whose transfer nobody fetches, on each rank, freed by a message to the rank's host."""
        for rank in (0, 1):
            transfer = f"tx-{uuid.uuid4()}"
            where, header = door(self.stage, PREFILL, rank)
            body = {"model": "tiny", "prompt": "the proxy " * 90, "max_tokens": 1, "ignore_eos": True, "temperature": 0}
            sent = {**body, "kv_transfer_params": params(transfer, False, DECODE)}
            status, _ = post(where, PATH, sent, {"X-Request-Id": uuid.uuid4().hex, **header})
            self.say(f"orphaned prefill on rank {rank}", status == 200, f"{status}")
            self.message(PREFILL[rank], {"type": "release", "transfer_id": transfer, "consumer_tp_size": 1})
            self.free(f"released on rank {rank} by a message to {PREFILL[rank]}", 20)

    def wake(self):
        """A decode leg without a prefill, on each rank, ended by a message to the rank's host."""
        for rank in (0, 1):
            transfer = f"tx-{uuid.uuid4()}"
            to, header = door(self.stage, DECODE, rank)
            body = {"model": "tiny", "prompt": "the proxy " * 90, "max_tokens": 4, "ignore_eos": True, "temperature": 0}
            load = params(transfer, True, PREFILL) | {"remote_dp_rank": rank, "is_request_leader": True}
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                parked = pool.submit(post, to, PATH, {**body, "kv_transfer_params": load},
                                     {"X-Request-Id": uuid.uuid4().hex, **header}, 30)
                time.sleep(3)
                waited = not parked.done()
                self.message(DECODE[rank], {"type": "write_done", "transfer_id": transfer})
                status, said = parked.result()
            self.say(f"decode leg on rank {rank} woken by a message to {DECODE[rank]}", waited and status == 200,
                     f"waited {waited}, then {status} {'' if status == 200 else said}")
        self.free("after the wakings", 90)


def check(stage: Stage, count: int, proxy: Path | None) -> int:
    checks = Checks(stage, count)
    if stage.mode == "write":
        for at_once in (1, 8):
            checks.equal(f"leader, decode free, {at_once} at once", lambda n, b: write(stage, b, "leader", n % 2, None), at_once)
            checks.equal(f"leader, decode pinned across, {at_once} at once",
                         lambda n, b: write(stage, b, "leader", n % 2, (n // 2) % 2), at_once)
            checks.equal(f"same rank, {at_once} at once", lambda n, b: write(stage, b, "same-rank", n % 2, n % 2), at_once)
    else:
        for at_once in (1, 8):
            checks.equal(f"aliased, decode free, {at_once} at once", lambda n, b: read(stage, b, n % 2, None), at_once)
            checks.equal(f"aliased, decode pinned across, {at_once} at once",
                         lambda n, b: read(stage, b, n % 2, (n // 2) % 2), at_once)
    checks.free("after all", 90)
    checks.release()
    if stage.mode == "write":
        checks.wake()
    if proxy:
        proxied.check(checks, proxy.resolve())
    return checks.failed


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kit", type=Path, required=True, help="folder with fakemori")
    options.add_argument("--home", type=Path, required=True, help="folder with vllm-VERSION, shim-VERSION and model")
    options.add_argument("--version", default="0.32.0", help="vLLM's (0.32.0)")
    options.add_argument("--mode", choices=["read", "write"], required=True)
    options.add_argument("--children", choices=["headless", "http"], required=True)
    options.add_argument("--proxy", type=Path, help="the proxy's program; without it all is done by hand")
    options.add_argument("--count", type=int, default=40, help="texts a check (40)")
    given = options.parse_args()
    work = given.home / f"wide-{given.version}"
    with Stage(given.kit.resolve(), given.home.resolve(), given.version, work.resolve(), given.mode, given.children) as stage:
        stage.single()
        for role in ("prefill", "decode"):
            stage.engine(role)
        stage.wait()
        return check(stage, given.count, given.proxy)


if __name__ == "__main__":
    sys.exit(main())
