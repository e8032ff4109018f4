"""What blocks that failed said last, for a person to read."""

from __future__ import annotations

import re
from collections.abc import Iterable

LINES = 12
"""Of what a block said, when there are several: Triton's warnings and errors come first, its newest lines last."""

NUMBER = re.compile(r"\d+")
"""Times and process numbers differ where nothing else does."""


def tell(failures: Iterable[tuple[str, str]]) -> str:
    """Return a paragraph for each block, indented; blocks that say the same share one.

    Parameters
    ----------
    failures
        Block id, and why it failed: a sentence, and below it the last lines of its stderr.
    """
    alike: dict[str, tuple[list[str], str]] = {}
    for block, why in failures:
        alike.setdefault(NUMBER.sub("#", why), ([], why))[0].append(block)
    return "\n".join(_paragraph(sorted(blocks, key=_as_number), why) for blocks, why in alike.values())


def _paragraph(blocks: list[str], why: str) -> str:
    reason, *said = why.strip().splitlines() or ["it does not say why"]
    name = f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {', '.join(blocks)}"
    return "\n    ".join([f"  {name}: {reason}", *said[-LINES:]])


def _as_number(block: str) -> tuple[int, str]:
    return (int(block) if block.isdecimal() else 0, block)
