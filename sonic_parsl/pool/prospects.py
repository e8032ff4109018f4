"""Which models the groups of a pool serve, or may come to serve: a group that fails is no end where another has them."""

from __future__ import annotations

from sonic_parsl.protocol import ServerTable


class Prospects:
    """What each group says of itself."""

    def __init__(self) -> None:
        self._models: dict[str, frozenset[str]] = {}

    def tell(self, group: str, models: frozenset[str]) -> None:
        """Note what a group serves or may come to serve; nothing where it has failed too often."""
        self._models[group] = models

    def others_serve(self, group: str, models: frozenset[str], table: ServerTable) -> bool:
        """Return whether other groups, or servers without jobs, offer all of `models` or may come to."""
        static = ({model.name for model in entry.info.models} for entry in table.ready if not entry.info.block_id)
        others = (served for other, served in self._models.items() if other != group)
        return any(models <= served for served in (*static, *others))
