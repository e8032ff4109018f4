"""Lengths of batch jobs, as site files and schedulers write them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

CLOCK = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>[0-5]\d):(?P<seconds>[0-5]\d)")


def seconds(value: object) -> object:
    """Return ``HH:MM:SS``, or ``D-HH:MM:SS``, as seconds; leave what is none of them as it is."""
    if not isinstance(value, str):
        return value  # YAML reads an unquoted 12:00:00 as seconds by itself
    found = CLOCK.fullmatch(value.strip())
    if found is None:
        msg = f"{value!r} is neither HH:MM:SS nor a number of seconds"
        raise ValueError(msg)
    days, hours, minutes, rest = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + rest)


def clock(walltime_s: float) -> str:
    """Return seconds as ``HH:MM:SS``."""
    minutes, rest = divmod(round(walltime_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest:02d}"


Walltime = Annotated[float, Field(gt=0), BeforeValidator(seconds)]
"""In seconds."""
