"""A server that somebody else runs, as a site file names it; and what all sections of a site file share."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from sonic_parsl.errors import ConfigError
from sonic_parsl.poolref import StaticServer
from sonic_parsl.ports import is_loopback

URL = re.compile(r"grpcs?://[A-Za-z0-9._-]+:[0-9]{1,5}")


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class Section(BaseModel):
    """A mapping in a site file: its keys are written with hyphens, and others are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=_kebab, allow_inf_nan=False)


def beside_site_file(value: str | None, info: ValidationInfo) -> str | None:
    """Return a path in a site file as seen from where the file lies."""
    folder: Path | None = (info.context or {}).get("folder")
    return value if value is None or folder is None else str(folder / Path(value).expanduser())


class Endpoint(Section):
    """A server that somebody else runs: a facility's Triton, a gateway, any KServe v2 server.

    Attributes
    ----------
    url
        ``grpcs://host:port``, or ``grpc://host:port`` without TLS on this machine.
    models
        Which of its models to use.
    ca
        File with the certificate of who signed the server's, relative to the site file; those that the
        system trusts by default.
    token_env
        Environment variable that holds the token it wants with each call; it is taken out of the
        environment when a run starts.
    insecure
        Whether an unencrypted connection to another machine is meant.
    """

    url: str
    models: Annotated[list[str], Field(min_length=1)]
    ca: str | None = None
    token_env: str | None = None
    insecure: bool = False

    _beside = field_validator("ca")(beside_site_file)

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        if URL.fullmatch(value) is None:
            msg = "this should be grpcs://host:port, or grpc://host:port without TLS"  # what it is may hold a password
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _check_plain(self) -> Endpoint:
        if self.secure or self.insecure or is_loopback(self.address.rpartition(":")[0]):
            return self
        msg = f"{self.url} is not encrypted and on another machine; use grpcs://, or say insecure: true"
        raise ValueError(msg)

    @property
    def secure(self) -> bool:
        """Whether it speaks TLS."""
        return self.url.startswith("grpcs:")

    @property
    def address(self) -> str:
        """``host:port``."""
        return self.url.partition("://")[2]

    def server(self, group: str, number: int, kind: str) -> StaticServer:
        """Return it as the pool knows it, with its secrets.

        Raises
        ------
        ConfigError
            The authority's file or the token is missing.
        """
        return StaticServer(
            id=f"{group}-static-{number}",
            group=group,
            kind=kind,
            address=self.address,
            models=tuple(self.models),
            secure=self.secure,
            authority=None if self.ca is None else _certificates_in(Path(self.ca), self.url),
            token=None if self.token_env is None else _token_of(self.token_env, self.url),
        )


def _certificates_in(path: Path, url: str) -> str:
    try:
        text = path.read_text()
        x509.load_pem_x509_certificates(text.encode())
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except ValueError:
        problem = "holds no certificate"
    else:
        return text
    raise ConfigError(
        f"The file {path}, which should say who signed the certificate of {url}, {problem}.",
        hint="Correct `ca` in the site file: it names a file in PEM format.",
    ) from None


def _token_of(variable: str, url: str) -> str:
    # Taken out, so that jobs and other processes of the run do not inherit it.
    token = os.environ.pop(variable, "") or _taken.get(variable)
    if not token:
        raise ConfigError(
            f"The token for {url} should be in the environment variable {variable}, which is not set.",
            hint=f"Run `export {variable}=...` first, or correct `token-env` in the site file.",
        )
    _taken[variable] = token
    return token


_taken: dict[str, str] = {}
"""For a second run of this process."""
