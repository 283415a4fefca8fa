"""The process in which tools run. Started as a script by `process.py`; standard library only.

Messages both ways: four bytes of length (big-endian) and JSON. The first request holds what to
import and the limits; each further one is a call. Replies leave on a private descriptor: what a
tool prints goes nowhere.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import operator
import os
import sys
import time


def main() -> None:
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    setup = read(requests)
    if setup is None:
        return
    sys.path[:] = setup["sys_path"]
    limit(setup["limits"])
    functions, failed = {}, {}
    for name, found in setup["tools"].items():
        try:
            functions[name] = load(found)
        except BaseException as error:  # one broken tool must not take the others with it
            failed[name] = f"cannot be loaded: {named(error)}"
    write(replies, {"ready": True, "failed": failed})
    os.dup2(nothing, 2)  # until here the parent keeps it, to say why a start failed
    while (request := read(requests)) is not None:
        allow_cpu(setup["limits"].get("cpu_s"))
        write(replies, {"id": request["id"], **answer(functions, request)})


def read(stream) -> dict | None:
    """The next message, or None at the end."""
    head = stream.read(4)
    return json.loads(stream.read(int.from_bytes(head, "big"))) if len(head) == 4 else None


def write(stream, message: dict) -> None:
    body = json.dumps(message).encode("ascii")
    stream.write(len(body).to_bytes(4, "big") + body)
    stream.flush()


def load(found: dict):
    """The function that a reference names, and what is bound to it."""
    if found["file"] and found["module"] not in sys.modules:
        spec = importlib.util.spec_from_file_location(found["module"], found["file"])
        module = importlib.util.module_from_spec(spec)
        sys.modules[found["module"]] = module
        spec.loader.exec_module(module)
    module = importlib.import_module(found["module"])
    return operator.attrgetter(found["qualname"])(module), found["args"], found["kwargs"]


def answer(functions: dict, request: dict) -> dict:
    """The outcome of a call; its text at most max_chars long, `chars` its whole length."""
    function, args, kwargs = functions[request["name"]]
    most = request["max_chars"]
    try:
        result = function(*args, **{**kwargs, **request["arguments"]})
    except BaseException as error:
        text = named(error)
        return {"kind": "raised", "text": text[:most], "chars": len(text)}
    try:
        if not isinstance(result, str):
            result = json.dumps(result, ensure_ascii=False, allow_nan=False)
    except BaseException as error:
        text = f"returned a {type(result).__name__} that is not JSON: {named(error)}"
        return {"kind": "bad_result", "text": text[:most], "chars": len(text)}
    return {"kind": None, "text": result[:most], "chars": len(result)}


def named(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def limit(limits: dict) -> None:
    """Memory and file sizes of this process, where the system can limit them."""
    try:
        import resource
    except ImportError:
        return
    wanted = [("RLIMIT_CORE", 0)]
    for key, kind in (("memory_bytes", "RLIMIT_AS"), ("file_bytes", "RLIMIT_FSIZE")):
        if limits.get(key) is not None:
            wanted.append((kind, limits[key]))
    for kind, value in wanted:
        try:
            hard = resource.getrlimit(getattr(resource, kind))[1]
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(getattr(resource, kind), (most, most))
        except (AttributeError, ValueError, OSError):
            pass  # macOS refuses RLIMIT_AS


def allow_cpu(seconds: float | None) -> None:
    """Processor time for one more call: ends a tool that spins on after its parent was killed."""
    try:
        import resource

        if seconds is not None:
            hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
            soft = int(time.process_time() + seconds) + 1
            if hard != resource.RLIM_INFINITY:
                soft = min(soft, hard)
            resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
    except (ImportError, ValueError, OSError):
        pass


if __name__ == "__main__":
    main()
