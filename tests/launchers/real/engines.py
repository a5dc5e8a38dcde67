"""One prefill and one decode engine that register with the router, and an undivided one of the same model."""

import re
import signal
from pathlib import Path

from processes import Child, get, is_open, offline, run, wait_for

MODEL = "tiny"
# What the router's launchers wait for engines, in seconds.
START_LIMIT = 2400
OK = 200


class Simulated:
    """`moriio-proxy sim`: engines of seconds, for trying everything but the models."""

    # Their answers have null for logprobs, and of a list of prompts even the undivided one answers the first alone.
    scores_prompts = takes_lists = False

    def __init__(self, binary, mode, ranks, python, folder):
        self.binary, self.mode, self.ranks, self.folder = binary, mode, ranks, folder
        self.tokenizer = folder / "tokenizer"
        code, said = run([python, Path(__file__).parent / "tokenizer.py", self.tokenizer], folder / "tokenizer.log", 300)
        if code != 0:
            raise OSError(f"no tokenizer: {said[-500:]}")
        self.children = []
        self.prefill = self.decode = self.single = ""

    def start(self, registration):
        common = ["--model", MODEL, "--control-port", "0"]
        pair = ["--mode", self.mode, "--dp", str(self.ranks), "--registration", f"127.0.0.1:{registration}"]
        # The undivided engine registers where nobody listens.
        single = ["--plain", "--prefill", "0", "--decode", "1", "--registration", "127.0.0.1:1"]
        for name, options in (("pair", pair), ("single", single)):
            child = Child([self.binary, "sim", *common, *options], self.folder / f"{name}.log", env=offline())
            self.children.append(child)
            if not wait_for(lambda child=child: "control http" in child.said() or not child.alive(), 20) or not child.alive():
                raise OSError(f"simulated engines did not start: {child.said()[-500:]}")
            # The undivided one calls itself decode, too.
            for role, url in re.findall(r"^(prefill|decode) (http://\S+)", child.said(), re.M):
                setattr(self, "single" if name == "single" else role, url)

    def fault(self):
        """Why they will never be healthy; nothing while they may."""
        return next((f"ended: {child.said()[-300:]}" for child in self.children if not child.alive()), "")

    def stop(self):
        for child in self.children:
            child.signal(signal.SIGTERM, 10)
            child.end()


class Real:
    """vLLM on the CPU, by a kit with `stack.sh`, `vllm.sh` and `env.sh`, installed before. Minutes to start."""

    ranks = 1
    scores_prompts = takes_lists = True

    def __init__(self, kit, mode, folder):
        self.kit, self.mode, self.folder, self.starting = kit, mode, folder, []
        # A folder of our own for logs and process numbers: engines of others are not ours to stop.
        self.environment = {**offline(), "RUN": str(folder / "engines")}
        script = '. "$1/env.sh"; echo "$MODEL" "$SINGLE" "$(p_http 0)" "$(d_http 0)"'
        command = ["bash", "-c", script, "ask", str(kit)]
        code, said = run(command, folder / "kit.log", 20, env=self.environment)
        if code != 0 or len(said.split()) != len(("model", "single", "prefill", "decode")):
            raise OSError(f"{kit}/env.sh does not tell what it should: {said[-300:]}")
        model, single, prefill, decode = said.split()
        self.tokenizer = Path(model)
        self.single = f"http://{single}"
        self.prefill, self.decode = (f"http://127.0.0.1:{port}" for port in (prefill, decode))
        if taken := [url for url in (self.prefill, self.decode, self.single) if is_open(int(url.rsplit(":", 1)[1]))]:
            raise OSError(f"somebody serves at {', '.join(taken)}: end that, or set PORT_BASE")

    def start(self, registration):
        environment = {**self.environment, "PROXY_PING_PORT": str(registration)}
        for name, words in (("single", ["single"]), ("pair", ["up", self.mode, "1", "1"])):
            command = [self.kit / "stack.sh", *words]
            self.starting.append(Child(command, self.folder / f"{name}.log", env=environment))

    def fault(self):
        # The kit gives up waiting sooner than a launcher does; only an engine that ended is the end.
        told = [child.said() for child in self.starting]
        return next((said[-300:] for said in told if " ended; see " in said), "")

    def stop(self):
        """By the kit, which knows the engines' own children; then whatever still stands in the groups."""
        code, said = run([self.kit / "stack.sh", "down"], self.folder / "down.log", 120, env=self.environment)
        for child in self.starting:
            child.end()
        if code != 0:
            raise OSError(f"stack.sh down: {said[-300:]}")


def healthy(engines):
    """Every engine's own /health is 200: the gate of vLLM's CI."""
    return all(url and get(f"{url}/health")[0] == OK for url in (engines.prefill, engines.decode, engines.single))


def kit_from(path):
    """The kit's folder; one without its scripts is a mistake of the caller's."""
    kit = Path(path).absolute()
    missing = [name for name in ("env.sh", "stack.sh", "vllm.sh") if not (kit / name).is_file()]
    if missing:
        raise OSError(f"{kit} is no kit of real engines: it has no {missing[0]}")
    return kit
