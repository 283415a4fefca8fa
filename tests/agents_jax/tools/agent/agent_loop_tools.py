"""Tools that misbehave, in a module of their own: the executor's worker imports them. And an
executor without a worker."""

import time

from agents_jax.tools.execution import Observation


def add(a, b):
    return a + b


def raises(text):
    raise RuntimeError(f"cannot do {text}")


def hangs():
    time.sleep(60)


def megabyte():
    return "x" * (1 << 20)


class FakeExecutor:
    """Runs `add` in this process; everything else fails."""

    def __init__(self):
        self.ran = []

    def run(self, call):
        self.ran.append(call)
        try:
            value = call.arguments["a"] + call.arguments["b"]
        except (KeyError, TypeError) as error:
            return Observation(call, False, repr(error), "bad_arguments")
        return Observation(call, True, str(value))
