"""Who may talk to whom: the certificates of a run, the names in them, and what is needed to reach a server."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Credentials:
    """A certificate of the run, its key, and the authority that signed it, as PEM. Never printed.

    Attributes
    ----------
    authority
        Certificate of the run's authority: who shows one that it signed is of the run.
    certificate, key
        What this process shows, and the proof that it is its own.
    """

    authority: str = field(repr=False)
    certificate: str = field(repr=False)
    key: str = field(repr=False)


@dataclass(frozen=True)
class Peer:
    """The other side of a connection: where it is, and how each side knows the other.

    Attributes
    ----------
    address
        ``host:port``.
    secure
        Whether the connection is encrypted (TLS).
    name
        What the other side's certificate must say; its host where this is None.
    authority
        Who must have signed that certificate, as PEM; those the system trusts where this is None.
    certificate, key
        What this side shows; nothing where they are None.
    token
        Sent with each call, for servers that want one.
    """

    address: str
    secure: bool = False
    name: str | None = None
    authority: str | None = field(default=None, repr=False)
    certificate: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    @classmethod
    def of_run(cls, address: str, name: str, credentials: Credentials | None) -> Peer:
        """Return a process of this run; the connection is plain where the run has no credentials."""
        if credentials is None:
            return cls(address)
        return cls(
            address,
            secure=True,
            name=name,
            authority=credentials.authority,
            certificate=credentials.certificate,
            key=credentials.key,
        )


# A certificate names what its owner is, not where: at submission nobody knows on which node a job will run.


def registry_name(run_id: str) -> str:
    """Return the name in the certificate of a run's registry."""
    return f"registry.{run_id}.sonic"


def client_name(run_id: str) -> str:
    """Return the name in the certificate that a run's workers share."""
    return f"client.{run_id}.sonic"


def block_name(run_id: str, group: str, block_id: str) -> str:
    """Return the name in the certificate of a block's servers; blocks are counted within their group."""
    return f"block-{group}-{block_id}.{run_id}.sonic"
