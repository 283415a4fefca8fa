"""The process in which BFCL's environments run; started by `sandbox.Sandbox`, never imported.

    python worker.py < requests > replies

Only the standard library: this file runs without the project. Requests and replies are lines of
JSON; a reply is {"ok": ...} or {"error": text}. The first request names the sources and what to
load. Every episode runs in a forked child, so that nothing of it is left for the next:

    {"begin": {"classes", "config", "long_context", "sides"}}   -> methods by name
    {"side": name, "calls": [[function, arguments], ...]}       -> results, one text per call
    {"compare": [side, other]}                                  -> attributes that differ
    {"end": true}                                               -> how the child ended

Calls are data: a function is looked up by name among the public methods of the episode's own
classes. Values are tagged, see `decoded`.
"""

import _strptime  # noqa: F401  loaded at its first use otherwise, when files are closed already
import copy
import importlib
import inspect
import json
import os
import resource
import sys

FORBIDDEN = (
    "ctypes.", "fcntl.", "ftplib.", "http.", "mmap.", "os.", "pty.", "resource.", "shutil.",
    "signal.", "smtplib.", "socket.", "subprocess.", "syslog.", "tempfile.", "urllib.",
    "webbrowser.",
)  # fmt: skip
"""Beginnings of the audit events that an episode is refused."""
MAX_SHOWN = 500
"""Characters of an attribute's value in a comparison."""


class Lines:
    """Lines in and out over file descriptors, without a buffer that a fork would double."""

    def __init__(self, source, target):
        self.source, self.target, self.rest = source, target, b""

    def read(self):
        """The next line as a value; None at the end."""
        while b"\n" not in self.rest:
            more = os.read(self.source, 1 << 16)
            if not more:
                return None
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line)

    def write(self, value):
        data = memoryview(json.dumps(value).encode() + b"\n")
        while data:
            data = data[os.write(self.target, data) :]


class Episode:
    """Instances of the environments, one set per side."""

    def __init__(self, modules, classes, config, long_context, sides):
        self.instances = {side: {} for side in sides}
        self.methods = {side: {} for side in sides}
        for side in sides:
            for name in classes:
                instance = getattr(modules[name], name)()
                if name != "MathAPI":  # it has no state
                    scenario = copy.deepcopy(config.get(name, {}))
                    instance._load_scenario(scenario, long_context=long_context)
                self.instances[side][name] = instance
                for method, bound in inspect.getmembers(instance, inspect.ismethod):
                    if not method.startswith("_"):
                        self.methods[side][method] = bound  # of the last class that has it

    def call(self, side, function, arguments):
        """A call's result as text; an error is a result, as in BFCL."""
        try:
            result = self.invoke(side, function, arguments)
            if isinstance(result, str):
                return result
            if isinstance(result, dict):
                try:
                    return json.dumps(result)
                except Exception:  # values that JSON does not have
                    return str(result)
            return str(result)
        except Exception as error:
            return f"Error during execution: {error}"

    def invoke(self, side, function, arguments):
        method = self.methods[side].get(function)
        if method is None:
            raise NameError(f"name {function!r} is not defined")
        values = {}
        for name, value in arguments.items():
            values[name] = self.decoded(side, value)
        return method(**values)

    def decoded(self, side, value):
        """A value out of its tagged form: {"list"|"tuple": values}, {"dict": pairs}, or
        {"call": [function, arguments]} for a call whose result is the value."""
        if not isinstance(value, dict):
            return value
        ((tag, content),) = value.items()
        if tag == "call":
            return self.invoke(side, content[0], content[1])
        if tag == "dict":
            return {self.decoded(side, k): self.decoded(side, v) for k, v in content}
        values = [self.decoded(side, v) for v in content]
        return values if tag == "list" else tuple(values)

    def compare(self, side, other):
        """{"Class.attribute": [value, other value]} of public attributes that are not equal."""
        differences = {}
        for name, instance in self.instances[side].items():
            for attribute, theirs in vars(self.instances[other][name]).items():
                if attribute.startswith("_"):
                    continue
                ours = getattr(instance, attribute)
                if ours != theirs:
                    shown = [repr(v)[:MAX_SHOWN] for v in (ours, theirs)]
                    differences[f"{name}.{attribute}"] = shown
        return differences


def confine(limits, readable):
    """Limits of this process, and a hook that refuses it the system; neither can be undone."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))

    def refuse(event, arguments):
        if event == "open":
            path, _, flags = arguments
            reads = not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            inside = isinstance(path, str) and os.path.realpath(path).startswith(readable)
            if not (reads and inside):
                raise PermissionError("files are not allowed here")
        elif event.startswith(FORBIDDEN):
            raise PermissionError(f"{event} is not allowed here")

    sys.addaudithook(refuse)


def leave_network():
    """Moves this process into a network of its own, where the system lets it."""
    import ctypes

    new_user, new_network = 0x10000000, 0x40000000
    try:
        unshare = ctypes.CDLL(None, use_errno=True).unshare
    except (OSError, AttributeError):
        return False
    return unshare(new_network) == 0 or unshare(new_user | new_network) == 0


def serve_episode(lines, modules, begin):
    """Answers the requests of one episode, in the child."""
    try:
        episode = Episode(modules, **begin)
    except Exception as error:
        lines.write({"error": f"the scenario cannot be loaded: {error!r}"})
        return
    lines.write({"ok": sorted(episode.methods[begin["sides"][0]])})
    while (request := lines.read()) is not None and "end" not in request:
        if "compare" in request:
            lines.write({"ok": episode.compare(*request["compare"])})
        else:
            lines.write({"ok": [episode.call(request["side"], *c) for c in request["calls"]]})


def main():
    replies = os.dup(1)
    os.dup2(2, 1)
    lines = Lines(0, replies)
    setup = lines.read()
    sys.path.insert(0, setup["root"])
    sys.pycache_prefix = os.getcwd()
    modules = {name: importlib.import_module(path) for name, path in setup["modules"].items()}
    lines.write({"ok": {"network_namespace": leave_network()}})
    readable = tuple(
        os.path.join(os.path.realpath(path), "")
        for path in (setup["root"], sys.prefix, sys.base_prefix)
    )
    while (request := lines.read()) is not None:
        if "begin" not in request:
            continue  # meant for a child that died before it was sent
        child = os.fork()
        if child == 0:
            status = 1
            try:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 1)  # what an environment prints is no reply
                os.dup2(nowhere, 2)
                confine(setup["limits"], readable)
                serve_episode(lines, modules, request["begin"])
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        lines.write({"ended": os.waitstatus_to_exitcode(status)})


if __name__ == "__main__":
    main()
