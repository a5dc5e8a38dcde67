"""A line for every check."""

import time


class Steps:
    def __init__(self, width=30):
        self.width, self.made, self.failed = width, 0, 0

    def take(self, name, step):
        """`step` returns whether it passed and what came of it; what it could not do or read is a failure."""
        begun = time.monotonic()
        try:
            passed, detail = step()
        except (OSError, ValueError, LookupError) as error:
            passed, detail = False, f"could not be done: {error!r}"
        self.made, self.failed = self.made + 1, self.failed + (not passed)
        print(f"{'ok  ' if passed else 'FAIL'} {name:<{self.width}} {time.monotonic() - begun:6.1f} s  {detail}", flush=True)
        return passed

    def leave_out(self, name, why):
        print(f"-    {name:<{self.width}} {'':>8}  left out: {why}", flush=True)

    def close(self, folder):
        print(f"{self.made} checks, {self.failed} failed; logs in {folder}", flush=True)
        return self.failed
