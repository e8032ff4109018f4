"""Do nodes reach the driver at the address that the site file has? Else a run would wait for servers in vain."""

from __future__ import annotations

import logging
import socket

import psutil

from sonic_parsl.ports import is_loopback
from sonic_parsl.site import SiteFile

logger = logging.getLogger(__name__)


def loopback_problem(settings: SiteFile) -> str | None:
    """Return, as a sentence, that jobs would look for the driver on their own node; None where they would not."""
    address = settings.driver.ipv4
    batch = sorted({job.provider for job in settings.jobs().values()} - {"local"})
    if not batch or not is_loopback(address):
        return None
    nets = [net.address for nets in psutil.net_if_addrs().values() for net in nets if net.family == socket.AF_INET]
    known = [own for own in nets if not is_loopback(own)]
    hint = f"Set `driver: {{address: ...}}` to one of {', '.join(known) or 'its others; it has none now'}."
    return f"driver: nodes of {', '.join(batch)} cannot reach this machine at {address}. {hint}"


def warn_of_loopback(settings: SiteFile) -> None:
    """Say so at the start of a run; it goes on, for all nodes of an emulated cluster are this machine."""
    if problem := loopback_problem(settings):
        logger.warning("%s", problem)
