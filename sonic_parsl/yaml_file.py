"""YAML files, read with a sentence for what is wrong in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from typing_extensions import override

from sonic_parsl.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would quietly take the last."""

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{key}' is there twice", problem_mark=key_node.start_mark)
            seen.add(key if isinstance(key, str) else None)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds.

    Raises
    ------
    ConfigError
        It cannot be read, or is not valid YAML; the message has line and column.
    """
    try:
        return yaml.load(path.read_bytes(), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(
            f"{path} is not valid YAML{where}: {error.problem or error.context}.",
            hint="Look at brackets, colons and indentation there and just before.",
        ) from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
