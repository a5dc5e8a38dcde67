"""Hosts on one machine: network namespaces on a bridge, each with its own address and its own ports."""

import subprocess
from pathlib import Path

NET = "10.77.0"
BRIDGE = "moriio0"
# The machine's own place on the bridge: proxy, reference engine and whoever asks.
OUTSIDE = f"{NET}.1"


def run(*words: str, check: bool = True) -> None:
    subprocess.run(words, check=check, capture_output=not check)


def up(addresses: list[str]) -> None:
    down(addresses)
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "addr", "add", f"{OUTSIDE}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    for address in addresses:
        space, near = name(address), f"mo{address.rsplit('.', 1)[1]}"
        run("ip", "netns", "add", space)
        run("ip", "link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "link", "set", near, "master", BRIDGE, "up")
        for words in (["addr", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"],
                      ["link", "set", "lo", "up"], ["route", "add", "default", "via", OUTSIDE]):
            run("ip", "-n", space, *words)


def down(addresses: list[str]) -> None:
    for address in addresses:
        run("ip", "netns", "del", name(address), check=False)
    run("ip", "link", "del", BRIDGE, check=False)


def name(address: str) -> str:
    return f"moriio-{address.rsplit('.', 1)[1]}"


def on(address: str) -> list[str]:
    """What goes before a command that is to run on a host."""
    return [] if address == OUTSIDE else ["ip", "netns", "exec", name(address)]


def plugin(folder: Path) -> Path:
    """A folder for PYTHONPATH from which vLLM loads `collectives.py`."""
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name("collectives.py")
    (folder / "moriio_cpu_collectives.py").write_text(source.read_text())
    told = folder / "moriio_cpu_collectives-1.dist-info"
    told.mkdir(exist_ok=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: moriio-cpu-collectives\nVersion: 1\n")
    (told / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nmoriio_cpu_collectives = moriio_cpu_collectives:register\n")
    return folder
