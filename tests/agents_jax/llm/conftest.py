"""An HTTP server on a real socket that does as it is told, misbehaving included."""

import json
import pathlib
import socket
import sys
import threading

import pytest

_ENGINE_TESTS = pathlib.Path(__file__).resolve().parents[2] / "pangu_jax" / "inference"
# A tiny model with a reference, and a server around a scripted engine, are made there.
sys.path[:0] = [str(_ENGINE_TESTS), str(_ENGINE_TESTS / "server")]


class Server:
    """Serves `respond`, a function (request) -> action, or a list of actions (the last repeats).

    request: {'path', 'headers', 'body'}. An action is bytes to write as they are, a number of
    seconds to wait, None to close, or a list of these; `json_reply` and `reply` make bytes.
    """

    def __init__(self):
        self.requests = []
        self.respond = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._closing.set()
        self._socket.close()

    def _accept(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection:
            try:
                while request := self._read(connection):
                    with self._lock:
                        number = len(self.requests)
                        self.requests.append(request)
                        action = (
                            self.respond(request)
                            if callable(self.respond)
                            else self.respond[min(number, len(self.respond) - 1)]
                        )
                    for step in action if isinstance(action, list) else [action]:
                        if step is None:
                            return
                        if isinstance(step, bytes):
                            connection.sendall(step)
                        elif self._closing.wait(step):
                            return
            except OSError:
                return  # the client left

    @staticmethod
    def _read(connection):
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            if not piece:
                return None
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            body += connection.recv(65536)
        return {"path": first.split()[1], "headers": headers, "body": json.loads(body)}


def reply(body, status=200, kind="application/json", headers=(), length=None):
    """Bytes of an HTTP answer; length: a Content-Length other than the true one."""
    data = body if isinstance(body, bytes) else body.encode()
    lines = [f"HTTP/1.1 {status} Status", f"Content-Type: {kind}"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines += [f"Content-Length: {len(data) if length is None else length}", "", ""]
    return "\r\n".join(lines).encode() + data


def chat(text="hello", *, usage=(7, 3), **message):
    """Bytes of a good chat answer."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"content": text, **message}}
    answer = {"model": "served", "choices": [choice]}
    if usage is not None:
        answer["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return reply(json.dumps(answer))


@pytest.fixture
def server():
    """A server that is told what to do by its attribute `respond`."""
    running = Server()
    yield running
    running.close()


@pytest.fixture(scope="session")
def http():
    """Makers of answers: http.reply, http.chat."""

    class Http:
        pass

    Http.reply, Http.chat = staticmethod(reply), staticmethod(chat)
    return Http
