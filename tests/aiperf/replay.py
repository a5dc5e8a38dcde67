"""aiperf as its users start it, and what its own files say of a run."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from processes import offline, run
from stack import MODEL

AT_ONCE = 8
TOKENIZER, REVISION = "sim/bytes", "0" * 40
MAKER = Path(__file__).resolve().parents[1] / "launchers/real/tokenizer.py"


def hub(python, folder):
    """A cache of the hub's form with one tokenizer in it: offline, aiperf 0.13.0 takes none from a plain folder. All counts
    are the engines', but it loads one nevertheless."""
    home = folder / f"models--{TOKENIZER.replace('/', '--')}"
    code, said = run([python, MAKER, home / "snapshots" / REVISION], folder.with_suffix(".log"), 300)
    if code != 0:
        raise OSError(f"no tokenizer: {said[-500:]}")
    (home / "refs").mkdir()
    (home / "refs/main").write_text(REVISION)
    return folder


@dataclass
class Result:
    """What aiperf says of its requests."""

    answered: int
    failed: int
    outputs: int
    # Answers that were longer or shorter than asked for.
    unlike: int
    prompt_tokens: int
    cached_tokens: int
    # The proxy's own count of these, as aiperf reads its /metrics.
    scraped_tokens: int
    # Milliseconds to the first token: half of the requests took at most the first, 99 of 100 the second.
    p50: float
    p99: float

    @property
    def hit_rate(self):
        return 100 * self.cached_tokens / self.prompt_tokens


def replay(world, url, folder):
    """Plays the trace once; raises OSError when aiperf does not come to its end."""
    command = [
        world.python, "-m", "aiperf", "profile", "--model", MODEL, "--url", url, "--endpoint-type", "chat", "--streaming",
        "--input-file", world.file, "--custom-dataset-type", "multi_turn", "--concurrency", str(AT_ONCE),
        "--num-conversations", str(len(world.trace.sessions)), "--tokenizer", TOKENIZER, "--use-server-token-count",
        "--random-seed", "1", "--workers-max", "2", "--no-gpu-telemetry", "--ui", "none", "--artifact-dir", folder,
    ]  # fmt: skip
    # It leaves folders and sockets where temporary files are; a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="aiperf-") as scratch:
        environment = {**offline(), "HF_HUB_CACHE": str(world.hub), "HF_HOME": scratch, "TMPDIR": scratch}
        code, said = run(command, folder / "aiperf.log", 300, cwd=folder, env=environment)
    if code != 0:
        raise OSError(f"aiperf ended with {code}: {said.strip()[-500:]}")
    return _read(folder)


def _read(folder):
    said = json.loads((folder / "profile_export_aiperf.json").read_text())
    scraped = json.loads((folder / "server_metrics_export.json").read_text())["metrics"]["moriio_prefill_cached_tokens"]
    (series,) = scraped["series"]

    def total(name):
        return int(said[name]["avg"])

    # What did not happen at all is not in the file.
    failed = sum(error["count"] for error in said["error_summary"]) + bool(said["was_cancelled"])
    first = said["time_to_first_token"]
    return Result(
        total("request_count"), failed, total("total_osl"), total("osl_mismatch_count"), total("total_usage_prompt_tokens"),
        total("total_usage_prompt_cache_read_tokens"), int(series["stats"]["total"]), first["p50"], first["p99"],
    )  # fmt: skip
