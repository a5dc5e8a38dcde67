"""Two engines of two hosts each, and the undivided engine that they are compared with."""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import hosts

PREFILL = [f"{hosts.NET}.11", f"{hosts.NET}.12"]
DECODE = [f"{hosts.NET}.21", f"{hosts.NET}.22"]
HTTP, HANDSHAKE, NOTIFY, RPC = 8000, 6301, 61005, 29550
SINGLE, PROXY, REGISTRATION = 8100, 30000, 36367


class Stage:
    """What was started, and ends with it."""

    def __init__(self, kit: Path, home: Path, version: str, work: Path, mode: str, children: str):
        self.kit, self.home, self.version, self.work = kit, home, version, work
        self.mode, self.children, self.processes = mode, children, {}
        self.python = home / f"vllm-{version}" / "bin" / "python"

    def __enter__(self):
        self.work.mkdir(parents=True, exist_ok=True)
        self.model = self.work / "moe"
        if not (self.model / "model.safetensors").exists():
            make = Path(__file__).with_name("model.py")
            subprocess.run([self.python, make, self.home / "model", self.model], check=True, capture_output=True)
        self.plugin = hosts.plugin(self.work / "plugin")
        hosts.up(PREFILL + DECODE)
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.terminate()
        until = time.monotonic() + 20
        for process in self.processes.values():
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        for address in PREFILL + DECODE:
            pids = subprocess.run(["ip", "netns", "pids", hosts.name(address)], capture_output=True, text=True, check=False)
            for pid in pids.stdout.split():
                subprocess.run(["kill", "-9", pid], check=False, capture_output=True)
        hosts.down(PREFILL + DECODE)

    def start(self, name: str, address: str, command: list, environment: dict | None = None):
        log = open(self.work / f"{name}.log", "w")
        self.processes[name] = subprocess.Popen(
            [*hosts.on(address), *map(str, command)], stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})})

    def end(self, name: str):
        """Ends one, if it was started."""
        process = self.processes.pop(name, None)
        if process:
            process.terminate()
            process.wait(40)

    def _vllm(self, name: str, address: str, arguments: list):
        shim = self.home / f"shim-{self.version}"
        stub = shim / "libtcmalloc-libiomp-stub.so"
        environment = {
            "PYTHONPATH": f"{shim}:{self.kit / 'fakemori'}:{self.plugin}", "VLLM_HOST_IP": address,
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "THP_MEM_ALLOC_ENABLE": "1",
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false", "FAKE_MORI_LOG": str(self.work / "mori.jsonl"),
        }
        if stub.exists():
            environment["LD_PRELOAD"] = str(stub)
        if address != hosts.OUTSIDE:
            environment["GLOO_SOCKET_IFNAME"] = "eth0"
        command = [self.python.with_name("vllm"), "serve", self.model, "--served-model-name", "tiny", "--enforce-eager",
                   "--dtype", "float32", "--max-model-len", 2048, "--max-num-seqs", 32, "--block-size", 32,
                   "--no-enable-prefix-caching", *arguments]
        self.start(name, address, command, environment)

    def single(self):
        self._vllm("single", hosts.OUTSIDE, ["--host", hosts.OUTSIDE, "--port", SINGLE])

    def engine(self, role: str):
        """An engine of two hosts with a rank each."""
        addresses = PREFILL if role == "prefill" else DECODE
        connector = {
            "kv_connector": "MoRIIOConnector", "kv_role": "kv_producer" if role == "prefill" else "kv_consumer",
            "kv_connector_extra_config": {
                "proxy_ip": hosts.OUTSIDE, "proxy_ping_port": str(REGISTRATION), "http_port": str(HTTP),
                "handshake_port": str(HANDSHAKE), "notify_port": str(NOTIFY), "read_mode": self.mode == "read"},
        }
        for rank, address in enumerate(addresses):
            arguments = ["--data-parallel-size", 2, "--data-parallel-size-local", 1, "--data-parallel-address", addresses[0],
                         "--data-parallel-rpc-port", RPC, "--kv-transfer-config", json.dumps(connector)]
            if self.children == "http":
                arguments += ["--data-parallel-hybrid-lb", "--data-parallel-start-rank", rank]
            elif rank > 0:
                arguments += ["--headless", "--data-parallel-start-rank", rank]
            if rank == 0 or self.children == "http":
                arguments += ["--host", address, "--port", HTTP]
            self._vllm(f"{role}{rank}", address, arguments)

    def serving(self) -> list[str]:
        """Where HTTP is served."""
        firsts = [PREFILL[0], DECODE[0]] if self.children == "headless" else PREFILL + DECODE
        return [f"{address}:{HTTP}" for address in firsts] + [f"{hosts.OUTSIDE}:{SINGLE}"]

    def wait(self, limit: float = 500):
        until = time.monotonic() + limit
        for where in self.serving():
            while True:
                try:
                    with urllib.request.urlopen(f"http://{where}/health", timeout=3):
                        break
                except OSError:
                    pass
                ended = [name for name, process in self.processes.items() if process.poll() is not None]
                if ended or time.monotonic() > until:
                    raise SystemExit(f"{where} does not serve; ended: {ended}; logs in {self.work}")
                time.sleep(2)


def post(where: str, path: str, body: dict, headers: dict | None = None, limit: float = 120):
    """Status and answer; 0 and what went wrong where there is none."""
    sent = urllib.request.Request(f"http://{where}{path}", json.dumps(body).encode(),
                                  {"content-type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(sent, timeout=limit) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError as error:
        return 0, str(error)


def get(where: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{where}{path}", timeout=10) as answer:
        return answer.read().decode()
