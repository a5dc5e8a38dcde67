#!/usr/bin/env python3
"""moriio-proxy in place of the Python proxy of this name, for launchers that run `python3 FILE`.

It becomes the binary, which so keeps the process id and gets every signal. The binary is found by MORIIO_PROXY_BINARY, else
beside this file, else on PATH; by the name of this file it knows whose options it is given.
"""
import os
import shutil
import sys


def fail(why):
    sys.stderr.write("moriio-proxy: " + why + "\n")
    sys.exit(2)


HERE = os.path.dirname(os.path.realpath(__file__))
BINARY = os.environ.get("MORIIO_PROXY_BINARY") or shutil.which("moriio-proxy", path=HERE) or shutil.which("moriio-proxy")
if not BINARY:
    fail("the binary is neither beside {} nor on PATH: MORIIO_PROXY_BINARY says where it is".format(__file__))
try:
    os.execvp(BINARY, [__file__] + sys.argv[1:])
except OSError as error:
    fail("cannot start {}: {}".format(BINARY, error.strerror))
