"""What a run's authority signs, and that its own key goes nowhere."""

from __future__ import annotations

import pickle
from datetime import datetime, timedelta, timezone

import cloudpickle
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from sonic_parsl.credentials import Credentials, block_name, registry_name
from sonic_parsl.errors import PoolError
from sonic_parsl.pool.authority import CLOCK_SLACK, VALID, CertificateAuthority

NAME = block_name("run", "cpu", "0")


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority("run")


def read(credentials: Credentials) -> x509.Certificate:
    return x509.load_pem_x509_certificate(credentials.certificate.encode())


def names_in(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.DNSName)


def test_a_certificate_says_its_name_and_no_other(authority: CertificateAuthority) -> None:
    assert names_in(read(authority.issue(NAME))) == [NAME]


@pytest.mark.parametrize("name", [NAME, registry_name("run"), block_name("run", "g" * 64, "123456"), "a_b.run.sonic"])
def test_a_name_may_be_long_and_is_said_in_full(authority: CertificateAuthority, name: str) -> None:
    assert names_in(read(authority.issue(name))) == [name]


def test_it_is_signed_by_the_run_and_not_by_another_of_the_same_name(authority: CertificateAuthority) -> None:
    mine, other = authority.issue(NAME), CertificateAuthority("run").issue(NAME)
    read(mine).verify_directly_issued_by(x509.load_pem_x509_certificate(mine.authority.encode()))
    with pytest.raises(InvalidSignature):
        read(other).verify_directly_issued_by(x509.load_pem_x509_certificate(mine.authority.encode()))


def test_it_is_valid_since_yesterday_for_a_month(authority: CertificateAuthority) -> None:
    certificate, now = read(authority.issue(NAME)), datetime.now(timezone.utc)
    assert abs(now - CLOCK_SLACK - certificate.not_valid_before_utc) < timedelta(minutes=1)
    assert abs(now + VALID - certificate.not_valid_after_utc) < timedelta(minutes=1)


def test_it_cannot_sign_others(authority: CertificateAuthority) -> None:
    certificate = read(authority.issue(NAME))
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_it_serves_both_sides_of_a_connection(authority: CertificateAuthority) -> None:
    usage = read(authority.issue(NAME)).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def test_the_key_is_that_of_the_certificate_and_each_has_its_own(authority: CertificateAuthority) -> None:
    issued = [authority.issue(NAME) for _ in range(5)]
    assert len({one.key for one in issued}) == 5
    for one in issued:
        key = serialization.load_pem_private_key(one.key.encode(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert key.public_key() == read(one).public_key()
        assert one.authority == authority.certificate


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_it_does_not_leave_its_process(authority: CertificateAuthority, pickler: pickle) -> None:  # type: ignore[valid-type]
    with pytest.raises(PoolError, match="does not leave the process that made it"):
        pickler.dumps(authority)  # type: ignore[attr-defined]


def test_no_text_of_it_holds_a_key(authority: CertificateAuthority) -> None:
    assert "PRIVATE" not in f"{authority} {authority!r} {authority.certificate}"
