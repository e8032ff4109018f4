"""Where ``sonic-parsl`` begins."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is being imported is told as click tells it later."""
    try:
        from sonic_parsl import cli
    except KeyboardInterrupt:
        sys.stderr.write("\nAborted!\n")
        raise SystemExit(1) from None
    cli.main()


if __name__ == "__main__":
    main()
