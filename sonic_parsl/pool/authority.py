"""The certificate authority of one run: its key lives in the memory of the pool's owner, and nowhere else."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from typing_extensions import override

from sonic_parsl.credentials import Credentials
from sonic_parsl.errors import PoolError

VALID = timedelta(days=30)
"""Longer than the walltime of any job; a pool that lives longer has to be started again."""
CLOCK_SLACK = timedelta(days=1)
"""Certificates are valid since yesterday: nodes' clocks differ, and jump."""


class CertificateAuthority:
    """Signs the certificates of one run.

    Parameters
    ----------
    run_id
        The run's name, which its own certificate bears.

    Attributes
    ----------
    certificate
        Its own certificate, as PEM.
    valid_until
        When that ends, and with it all that it has signed, in seconds since the epoch.
    """

    def __init__(self, run_id: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(f"sonic-parsl run {run_id}")
        certificate = (
            self._builder(self._name, self._key.public_key(), VALID)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.valid_until = certificate.not_valid_after_utc.timestamp()

    @override
    def __reduce__(self) -> NoReturn:
        raise PoolError("A run's certificate authority does not leave the process that made it.")

    def issue(self, name: str, *, valid: timedelta = VALID) -> Credentials:
        """Return a new key and a certificate of it that says `name`.

        It serves for both sides of a connection: an agent is the client of its own Triton.

        Parameters
        ----------
        valid
            How long from now.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        certificate = (
            # A common name holds 64 characters; what is checked is the alternative name.
            self._builder(_named(name[:64]), key.public_key(), valid)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(both, critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Credentials(
            authority=self.certificate,
            certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
            key=key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode(),
        )

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, valid: timedelta) -> x509.CertificateBuilder:
        now = datetime.now(timezone.utc)
        return x509.CertificateBuilder(
            issuer_name=self._name,
            subject_name=subject,
            public_key=key,
            serial_number=x509.random_serial_number(),
            not_valid_before=now - CLOCK_SLACK,
            not_valid_after=now + valid,
        )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
