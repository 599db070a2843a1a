"""A line between two programs that can be cut, as a switch that fails: nobody is told."""

import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit


class CutProxy:
    """Passes bytes on to `target`, while used as a context and not cut."""

    def __init__(self, target):
        parts = urlsplit(target)
        self._target = parts.hostname, parts.port
        self._whole = threading.Event()
        self._whole.set()
        self._open = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self):
        """What is sent from now on arrives nowhere; connections stay open and say nothing."""
        self._whole.clear()

    def mend(self):
        """New connections go through; those from before have lost bytes and are closed."""
        before, self._open = self._open, []
        self._whole.set()
        _close(before)

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        _close([self._listener, *self._open])

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(near)
            if self._whole.is_set():
                far = socket.create_connection(self._target)
                self._open.append(far)
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one, other):
        try:
            while data := one.recv(65536):
                if self._whole.is_set():
                    other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            return


def _close(sockets):
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
