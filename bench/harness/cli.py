"""The command line."""

import argparse
import json
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from harness import install, machine, render, scenes, still
from harness.session import Session
from harness.stage import Failed
from harness.subjects import NAMES, Kit

SCENES = {
    function.__name__: function
    for function in (
        scenes.exchange, scenes.chunk, scenes.paced, scenes.large, scenes.agents, scenes.ttft, scenes.streams512,
        scenes.streams2048, scenes.sweep, scenes.pool, scenes.workers, scenes.memory, still.idle_streams, still.stall, still.idle,
        still.static, still.counts,
    )
}


def _arguments(given: list[str]) -> argparse.Namespace:
    listed = "\n".join(f"  {name:<14} {function.__doc__.splitlines()[0]}" for name, function in SCENES.items())
    parser = argparse.ArgumentParser(
        prog="bench/run", description="Measures the proxy beside other relays, side by side in one run.",
        epilog=f"scenes:\n{listed}\n\nexit code: 0; 1 if anything failed, a single request of ours among it; 2 for wrong "
               "arguments; 3 with --strict if a target was missed",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", default=",".join(SCENES), help="which, separated by commas (all)")
    parser.add_argument("--subjects", help=f"only these, separated by commas (each scene's own): {', '.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=0, help="of the scenes with targets, others at most 5 (10; quick 2)")
    parser.add_argument("--quick", action="store_true", help="short rounds, for a first look: no figure to cite")
    parser.add_argument("--binary", type=Path, help="the proxy (built for release from this checkout)")
    parser.add_argument("--dev", action="store_true", help="builds for development: to try this program, not the proxy")
    parser.add_argument("--out", type=Path, default=install.HOME / "results",
                        help="directory for results; bench/results has the last full run (target/bench/results)")
    parser.add_argument("--strict", action="store_true", help="exit with 3 if a target is missed")
    parser.add_argument("--render", type=Path, metavar="FILE",
                        help="make table and plots from a run's JSON again, and measure nothing")
    arguments = parser.parse_args(given)
    arguments.scenes = arguments.scenes.split(",")
    unknown = [name for name in arguments.scenes if name not in SCENES]
    if unknown:
        parser.error(f"no such scene: {', '.join(unknown)}")
    arguments.subjects = arguments.subjects.split(",") if arguments.subjects else None
    if any(name not in NAMES for name in arguments.subjects or []):
        parser.error(f"subjects are {', '.join(NAMES)}")
    arguments.quick |= arguments.dev
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 10)
    return arguments


def _commit() -> str:
    said = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=install.ROOT, text=True,
                          capture_output=True, check=False).stdout.strip()
    return said or "unknown"


def _report(session: Session, commit: str, begin: float, given: list[str], failed: list[str]) -> dict:
    """All there is to know of a run so far."""
    return {
        "command": shlex.join(["bench/run", *given]), "commit": commit, "quick": session.quick,
        "date": time.strftime("%Y-%m-%d", time.gmtime(begin)), "seconds": round(time.time() - begin),
        "machine": machine.facts(), "versions": session.kit.versions(), "failed": failed, "samples": session.samples,
    }


def _run(arguments: argparse.Namespace, given: list[str]) -> dict:
    binary = arguments.binary.resolve() if arguments.binary else None
    kit = Kit(binary=binary, profile="dev" if arguments.dev else "release")
    # What has to be built must not be built while a scene begins.
    for program in ("moriio-bench", "moriio-proxy"):
        kit.get(program)
    session = Session(kit, rounds=arguments.rounds, quick=arguments.quick, subjects=arguments.subjects)
    begin, broken = time.time(), []
    # Asked before a result is written, which may be one of the files that git knows.
    commit = _commit()
    for name in arguments.scenes:
        install.say(f"bench: {name}, after {time.time() - begin:.0f} s")
        try:
            SCENES[name](session)
        except (Failed, install.Missing) as error:
            # The others are worth having; the run is a failure all the same.
            broken.append(f"{name}: {error}")
            install.say(f"bench: {broken[-1]}")
        # Whatever ends the run later, this scene is not lost.
        result = _report(session, commit, begin, given, broken + _our_failures(session))
        _write(result, arguments.out)
    return result


def _our_failures(session: Session) -> list[str]:
    ours = [one for one in session.samples if one.get("failures") and one["subject"].startswith(("moriio", "floor"))]
    return [f"{one['scene']} {one['case']}: {one['failures']} requests failed at {one['subject']}" for one in ours]


def _write(result: dict, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # A line a sample, so that two runs can be compared line by line.
    text = json.dumps(result, separators=(",", ":")).replace('{"scene"', '\n{"scene"')
    (folder / "latest.json").write_text(text + "\n")


def main(given: list[str] | None = None) -> int:
    given = sys.argv[1:] if given is None else given
    # Thousands of streams need as many descriptors as may be had, here and in what is started.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    # Whoever stops a run gets its processes stopped as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = _arguments(given)
    if arguments.render:
        return render.all_of(json.loads(arguments.render.read_text()), arguments.render.parent, arguments.strict)
    try:
        result = _run(arguments, given)
    except install.Missing as error:
        install.say(f"bench: {error}")
        return 1
    code = render.all_of(result, arguments.out, arguments.strict)
    for text in result["failed"]:
        install.say(f"bench: failed: {text}")
    return 1 if result["failed"] else code
