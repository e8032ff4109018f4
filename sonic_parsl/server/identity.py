"""Who a server is to its clients: a name, and the certificate that bears it out."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from sonic_parsl.credentials import Credentials, Peer
from sonic_parsl.errors import ServerStartError
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

    def new_folder(self) -> Path | None:
        """Return where a Triton's keys may be written, which is not there yet; None where there are none."""
        return None if self.credentials is None else Path(tempfile.gettempdir()) / f"sonic-parsl-keys-{uuid4().hex}"

    @contextmanager
    def key_files(self, folder: Path | None) -> Iterator[None]:
        """Write certificate and key for a Triton that starts, and remove them afterwards.

        Parameters
        ----------
        folder
            From :meth:`new_folder`: only this user can read it.

        Raises
        ------
        ServerStartError
            There is no room for them.
        """
        if self.credentials is None or folder is None:
            yield
            return
        contents = {
            "server-cert": self.credentials.certificate,
            "server-key": self.credentials.key,
            "root-cert": self.credentials.authority,
        }
        with ExitStack() as stack:
            try:
                folder.mkdir(mode=0o700)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)  # its guard may have removed it
                for part, name in KEY_FILES.items():
                    _write_private(folder / name, contents[part])
            except OSError as error:
                raise ServerStartError(
                    f"The server's certificate cannot be written to {tempfile.gettempdir()}: {error.strerror}.",
                    hint="Make room in the node's temporary folder, or set TMPDIR in worker-init.",
                ) from None
            yield


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
