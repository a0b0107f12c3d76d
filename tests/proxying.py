"""A proxy between a browser and a server that cuts all connections when a test wants it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class Proxy:
    """Forwards bytes in both directions.

    Attributes:
        url: Where it takes connections.
    """

    def __init__(self, listener: socket.socket, port: int) -> None:
        self._listener, self._port = listener, port
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"

    def cut(self) -> None:
        """Cut all connections that are open."""
        with self._lock:
            taken, self._open = self._open, set()
        for one in taken:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def accept(self) -> None:
        """Take connections until the listener is closed."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            threading.Thread(target=self._join, args=(client, server)).start()

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=self._forward, args=(server, client))
        back.start()
        self._forward(client, server)
        back.join()
        with self._lock:
            self._open -= {client, server}
        client.close()
        server.close()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxying(url: str) -> Iterator[Proxy]:
    """Forward to the server at this address for the time of a block."""
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = Proxy(listener, int(url.rstrip("/").rpartition(":")[2]))
    taking = threading.Thread(target=proxy.accept)
    taking.start()
    try:
        yield proxy
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread; to close it would not
        listener.close()
        taking.join()
        proxy.cut()
