"""The virtual environment of the tools: made once under the target directory, anew when the requirements change."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
# Package indexes fail now and then.
TRIES = 3


def make(target, requirements=REQUIREMENTS):
    """The interpreter of a complete environment. About 1 GB and three to six minutes, the first time."""
    home = target / "tools"
    python, stamp, wanted = home / "bin/python", home / "complete", requirements.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"     installing {requirements.name} into {home}", flush=True)
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]
    for _ in range(TRIES):
        if subprocess.run([*pip, "--requirement", requirements], stdin=subprocess.DEVNULL, check=False).returncode == 0:
            stamp.write_text(wanted)
            return python
    sys.exit(f"pip could not install {requirements} in {TRIES} tries")
