"""Builds and installs what is missing, each into a directory of its own, or says that it cannot be had."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
HOME = TARGET / "bench"
ROUTER = "vllm-router==0.1.17"
# Programs, and the Debian package that brings each.
PACKAGES = {"nginx": "nginx-light", "haproxy": "haproxy", "perf": "linux-perf", "valgrind": "valgrind"}
TRIES = 3


class Missing(Exception):
    """Something that a run needs and that cannot be had."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def sh(command: list[str], **options: object) -> str:
    """Runs a command that must succeed and gives what it printed."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **options)
    if done.returncode != 0:
        raise Missing(f"{' '.join(command)} ended with {done.returncode}: {done.stdout[-800:]}")
    return done.stdout


def again(command: list[str], **options: object) -> str:
    """The same for what comes over the network, where a second try often passes."""
    for number in range(1, TRIES):
        try:
            return sh(command, **options)
        except Missing as error:
            say(f"bench: try {number} of {TRIES}: {error}")
            time.sleep(5 * number)
    return sh(command, **options)


def build(package: str, profile: str) -> Path:
    """A program of this repository."""
    # Both packages are named, so that dependencies are built once, with the features that both need.
    packages = ["--package=moriio-proxy", "--package=moriio-bench"]
    sh(["cargo", "build", f"--profile={profile}", "--locked", *packages, f"--bin={package}"], cwd=ROOT)
    return TARGET / ("debug" if profile == "dev" else profile) / package


def program(name: str) -> Path:
    """A program of the system's, of Debian's packages otherwise, unpacked without installing them."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found:
        return Path(found)
    folder = HOME / name
    if not _unpacked(folder, name):
        say(f"bench: installing {name} below {HOME}")
        unpack(PACKAGES[name], folder)
    path = _unpacked(folder, name)
    if path is None:
        raise Missing(f"{name} is missing, and Debian's {PACKAGES[name]} does not bring it")
    return path


def _unpacked(folder: Path, name: str) -> Path | None:
    """A program among packages' files, in whichever directory for programs it lies."""
    return next((path for place in ("sbin", "bin") for path in folder.rglob(f"{place}/{name}")), None)


def unpack(package: str, folder: Path) -> None:
    """A Debian package with the libraries that this system lacks, below a directory."""
    if not shutil.which("apt-get"):
        raise Missing(f"{package} is missing, and there is no apt-get to bring it")
    folder.mkdir(parents=True, exist_ok=True)
    plan = again(["apt-get", "install", "--simulate", "--no-install-recommends", package])
    wanted = re.findall(r"^Inst (\S+)", plan, re.MULTILINE) or [package]
    again(["apt-get", "download", *wanted], cwd=folder)
    for file in folder.glob("*.deb"):
        sh(["dpkg", "--extract", str(file), str(folder)])
        file.unlink()


def libraries(path: Path) -> dict[str, str]:
    """The environment in which an unpacked program finds its libraries."""
    if HOME not in path.parents:
        return {}
    top = HOME / path.relative_to(HOME).parts[0]
    folders = sorted({str(library.parent) for library in top.rglob("*.so*")})
    return {"LD_LIBRARY_PATH": ":".join(folders)}


def router() -> Path:
    """vllm-router of PyPI, in a virtual environment."""
    folder = HOME / "vllm-router"
    path = folder / "bin" / "vllm-router"
    if not path.exists():
        say(f"bench: installing {ROUTER}")
        sh([sys.executable, "-m", "venv", "--clear", str(folder)])
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--no-input", "--disable-pip-version-check"]
        again([*pip, "--only-binary", ":all:", ROUTER])
    if not path.exists():
        raise Missing(f"{ROUTER} brings no vllm-router")
    return path


def version(command: list[str], pattern: str) -> str:
    """What a program says of its version."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                          env=os.environ | libraries(Path(command[0])))
    found = re.search(pattern, done.stdout)
    return found.group(1) if found else "unknown"
