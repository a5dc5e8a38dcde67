"""`vllm bench serve` as two launchers start it, and what it says at its end."""

import re
from dataclasses import dataclass

from engines import MODEL
from processes import offline, run

NUMBERS = {"completed": "Successful requests", "failed": "Failed requests", "tokens": "Total generated tokens"}


@dataclass
class Load:
    """Input and output tokens of each request, requests at once, and all requests."""

    inputs: int
    outputs: int
    at_once: int
    requests: int

    def __str__(self):
        return f"{self.inputs}/{self.outputs} C{self.at_once}"

    def _random(self):
        return f"--dataset-name random --random-input-len {self.inputs} --random-output-len {self.outputs}".split()

    def as_vllm_ci(self, router):
        counts = f"--num-prompts {self.requests} --max-concurrency {self.at_once}".split()
        head = ["--backend", "openai", "--base-url", router.url, "--endpoint", "/v1/completions"]
        return [*head, *self._random(), *counts, "--percentile-metrics", "ttft,tpot,itl,e2el", "--ignore-eos"]

    def as_mad(self, router):
        counts = f"--random-prefix-len 0 --num-prompts {self.requests} --request-rate inf".split()
        head = ["--backend", "vllm", "--host", "127.0.0.1", "--port", str(router.port)]
        return [*head, *self._random(), *counts, "--ignore-eos", "--max-concurrency", str(self.at_once)]


# Engines on a CPU have a context of 2048 tokens, so what is longer there is shorter here.
VLLM_CI = [Load(1024, 128, 8, 16), Load(1024, 128, 32, 64)]
MAD = [Load(32, 32, 1, 16), Load(512, 128, 4, 8)]


def bench(kit, model, options, log):
    """The numbers of one run; raises OSError when it does not come to its end."""
    command = [kit / "vllm.sh", "bench", "serve", "--model", model, "--served-model-name", MODEL, *options]
    code, said = run(command, log, 1800, env=offline())
    found = {name: re.search(rf"^{words}:\s+(\d+)", said, re.M) for name, words in NUMBERS.items()}
    if code != 0 or not all(found.values()):
        raise OSError(f"vllm bench serve ended with {code}: {said.strip()[-500:]}")
    seconds = re.search(r"^Benchmark duration \(s\):\s+([\d.]+)", said, re.M)
    return {name: int(match[1]) for name, match in found.items()}, float(seconds[1]) if seconds else 0.0
