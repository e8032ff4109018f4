"""Who a server is to its clients: a name, and the certificate that bears it out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sonic_parsl.credentials import Credentials, Peer
from sonic_parsl.server.home import no_room
from sonic_parsl.server.runtimes.command import KEY_FILES


@dataclass(frozen=True)
class Identity:
    """A server's name and credentials.

    Attributes
    ----------
    name
        What its certificate says.
    credentials
        None where the run has no security.
    """

    name: str
    credentials: Credentials | None

    def peer(self, address: str) -> Peer:
        """Return how the server at `address` is reached by its own agent."""
        return Peer.of_run(address, self.name, self.credentials)

    @contextmanager
    def key_files(self, home: Path) -> Iterator[Path | None]:
        """Write certificate and key for a Triton that starts, and remove them afterwards.

        Parameters
        ----------
        home
            A folder that only this user can enter.

        Yields
        ------
        Path or None
            The folder they are in; None where the run has no security.

        Raises
        ------
        ServerStartError
            There is no room for them.
        """
        if self.credentials is None:
            yield None
            return
        contents = {
            "server-cert": self.credentials.certificate,
            "server-key": self.credentials.key,
            "root-cert": self.credentials.authority,
        }
        folder = home / "keys"
        with ExitStack() as stack:
            try:
                folder.mkdir(mode=0o700)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)  # its guard may have removed it
                for part, name in KEY_FILES.items():
                    _write_private(folder / name, contents[part])
            except OSError as error:
                raise no_room("The server's certificate", error) from None
            yield folder


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
