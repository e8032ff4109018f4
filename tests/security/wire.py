"""What can be read on the network: a relay that listens in, and the records of TLS."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

HANDSHAKE, APPLICATION_DATA = 22, 23
CONTENT_TYPES = range(20, 24)
"""Change of ciphers, alert, handshake, application data: RFC 8446, section 5.1."""
HEADER_BYTES, HANDSHAKE_HEADER_BYTES = 5, 4
TLS_1_2 = 0x0303
SUPPORTED_VERSIONS = 43


@dataclass
class Wire:
    """What went over the connections of a relay.

    Attributes
    ----------
    address
        Where the relay listens, as ``host:port``.
    sent, received
        What clients and the server behind the relay said, by connection.
    """

    address: str
    sent: list[bytearray] = field(default_factory=list)
    received: list[bytearray] = field(default_factory=list)

    def all(self) -> bytes:
        """Return all that could be read."""
        return b"".join([*self.sent, *self.received])


@contextmanager
def listening_in(address: str) -> Iterator[Wire]:
    """Relay connections to `address` and keep what is said."""
    host, _, port = address.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as server:
        wire = Wire("{}:{}".format(*server.getsockname()))
        threads, ends = list[threading.Thread](), list[socket.socket]()

        def accept() -> None:
            with suppress(OSError):  # the relay is closed
                while True:
                    near, _ = server.accept()
                    far = socket.create_connection((host, int(port)))
                    ends.extend((near, far))
                    for source, sink, kept in ((near, far, wire.sent), (far, near, wire.received)):
                        kept.append(bytearray())
                        threads.append(threading.Thread(target=_copy, args=(source, sink, kept[-1])))
                        threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield wire
        finally:
            server.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for end in ends:
                with suppress(OSError):  # closed already
                    end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for end in ends:
                end.close()


def _copy(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
    with suppress(OSError):
        while data := source.recv(2**16):
            kept += data
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def records(stream: bytes) -> list[tuple[int, bytes]]:
    """Return type and content of each TLS record in a direction of a connection.

    Raises
    ------
    AssertionError
        There is something else in it.
    """
    found, at = [], 0
    while at < len(stream):
        kind, version = stream[at], int.from_bytes(stream[at + 1 : at + 3], "big")
        length = int.from_bytes(stream[at + 3 : at + HEADER_BYTES], "big")
        assert kind in CONTENT_TYPES, f"byte {at} begins no TLS record: {stream[at : at + 20]!r}"
        assert 0x0301 <= version <= TLS_1_2, f"TLS record of version {version:#x}"
        found.append((kind, stream[at + HEADER_BYTES : at + HEADER_BYTES + length]))
        at += HEADER_BYTES + length
    return found


def negotiated_version(server_hello: bytes) -> int:
    """Return the version of TLS that a ServerHello chooses: RFC 8446, section 4.1.3."""
    at = HANDSHAKE_HEADER_BYTES
    version = int.from_bytes(server_hello[at : at + 2], "big")
    at += 2 + 32  # the version, a random number
    at += 1 + server_hello[at]  # the session's identity
    at += 2 + 1 + 2  # cipher suite, compression, length of the extensions
    while at < len(server_hello):
        kind, length = (int.from_bytes(server_hello[at + i : at + i + 2], "big") for i in (0, 2))
        if kind == SUPPORTED_VERSIONS:
            return int.from_bytes(server_hello[at + 4 : at + 6], "big")
        at += 4 + length
    return version
