"""Tools that do what tools should not, importable by the process that runs them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

calls_seen = []


def echo(**arguments):
    return arguments


def same(text):
    return text


def count():
    calls_seen.append(None)
    return len(calls_seen)


def raises(message="no such thing"):
    raise LookupError(message)


def raises_badly():
    class Silent(Exception):
        def __str__(self):
            raise RuntimeError

    raise Silent


def leaves():
    sys.exit(3)


def dies(status=7):
    os._exit(status)


def segfaults():
    os.kill(os.getpid(), 11)


def hangs(seconds=60):
    time.sleep(seconds)


def spins():
    while True:
        pass


def long_text(chars, character="x"):
    return character * chars


def no_json():
    return {1, 2}


def not_a_number():
    return float("nan")


def recurses():
    return recurses()


def takes_memory(megabytes):
    return str(len(bytearray(megabytes << 20)))


def chatters():
    print("to nowhere" * 1000)
    sys.stdout.flush()
    os.write(1, b"garbage")
    os.write(2, b"garbage")
    return sys.stdin.read() + "done"


def starts_a_child(path):
    """Starts a process that writes its number into a file and sleeps; then waits for it."""
    code = f"import os, time; open({path!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    subprocess.run([sys.executable, "-c", code])


def leaves_a_child_and_dies(path):
    if os.fork() == 0:
        with open(path, "w") as file:
            file.write(str(os.getpid()))
        time.sleep(60)
    while not os.path.exists(path) or not os.path.getsize(path):
        time.sleep(0.01)
    os._exit(1)


def variable(name):
    return os.environ.get(name)


def writes(path, chars):
    with open(path, "w") as file:
        file.write("x" * chars)
    return "written"


class Holder:
    @staticmethod
    def method(a):
        return a + 1

    def __call__(self):
        return "called"
