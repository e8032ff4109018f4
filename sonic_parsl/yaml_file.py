"""YAML files, read with a sentence for what is wrong in them."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import override

from sonic_parsl.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would quietly take the last, and names a value that is none."""

    @override
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, KeyError, AttributeError):  # what PyYAML's own constructors raise, such as for month 13
            problem = f"{reprlib.repr(node.value)} is written like a number, a date or such, and is none"
            note = "Correct it, or put it in quotes."
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark, note=note) from None

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
            hint=error.note or "Look at brackets, colons and indentation there and just before.",
        ) from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply.", hint="Look at its brackets and its indentation.") from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
