"""What a physicist writes to say which fields become which tensor, and which classes come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from sonic_parsl.errors import ConfigError


@dataclass(frozen=True)
class Fields:
    """Numbers of the row itself, stacked to a tensor of shape (rows, fields).

    Attributes
    ----------
    fields
        Field names; ``"muon.pt"`` is field ``pt`` of the record ``muon`` inside the row.
    """

    fields: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_names(self.fields, "Fields of a tensor")


@dataclass(frozen=True)
class Padded:
    """Lists inside the row, such as a jet's constituents, brought to one length.

    The tensor has shape (rows, fields, length), or (rows, length, fields).

    Parameters
    ----------
    fields
        Names of fields that hold one list of numbers a row, such as ``"pf.pt"``. Where the
        array's records are the constituents themselves, their own fields; a row is then the list.
    length
        Entries a row: what is beyond is cut off.
    fill
        What stands behind the end of a shorter list.
    channels_first
        Whether fields come before entries in the tensor's shape.
    """

    fields: Sequence[str]
    length: int
    fill: float = 0.0
    channels_first: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", _names(self.fields, "Fields of Padded"))
        _check_length(self.length, "Padded")
        _check_number(self.fill, "The fill value of Padded")


@dataclass(frozen=True)
class Mask:
    """One where a padded tensor holds a real entry, zero where it holds padding.

    The tensor has shape (rows, length); axes of size one are added as the model wants them.

    Parameters
    ----------
    field
        A list inside the row (``"pf"``) or a field of it (``"pf.pt"``).
    length
        As in :class:`Padded`.
    """

    field: str
    length: int

    def __post_init__(self) -> None:
        _check_names((self.field,), "The field of Mask")
        _check_length(self.length, "Mask")

    @property
    def fields(self) -> tuple[str, ...]:
        """The field, as the other kinds of columns have theirs."""
        return (self.field,)


@dataclass(frozen=True)
class Output:
    """Classes that one output tensor holds for each row.

    Parameters
    ----------
    names
        Names of the classes, or a single one where the tensor is one number a row.
    dtype
        What the model answers in.
    """

    names: str | Sequence[str]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        names = (self.names,) if isinstance(self.names, str) else _names(self.names, "Classes of an output")
        object.__setattr__(self, "names", names)
        _check_names(names, "Classes of an output")
        try:
            dtype = np.dtype(self.dtype)
        except TypeError:
            raise ConfigError(f"An output cannot have dtype {self.dtype!r}.", hint="float32 is usual.") from None
        if dtype.kind not in "biuf":
            raise ConfigError(f"An output cannot have dtype {dtype}.", hint="Use a number type, such as float32.")
        object.__setattr__(self, "dtype", dtype.name)


Columns: TypeAlias = Fields | Padded | Mask
Prepare: TypeAlias = Callable[[Any], Mapping[str, Any]]
Inputs: TypeAlias = tuple[tuple[str | None, Columns], ...]
"""Tensor name and columns; None is the one input of a model that has one."""
Outputs: TypeAlias = tuple[tuple[str | None, Output], ...]
Fill: TypeAlias = float | tuple[tuple[str, float], ...] | None
"""What stands in for missing numbers: in all fields, in those named, or nowhere."""

InputsLike: TypeAlias = (
    Sequence[str] | Padded | Mask | Mapping[str, str | Sequence[str] | Padded | Mask] | Prepare | None
)
OutputsLike: TypeAlias = str | Sequence[str] | Output | Mapping[str, str | Sequence[str] | Output]


def read_inputs(inputs: InputsLike) -> Inputs | Prepare | None:
    """Bring a model's `inputs` argument to one form.

    Raises
    ------
    ConfigError
        It is none of the forms that :class:`~sonic_parsl.model.Model` takes.
    """
    if inputs is None or (callable(inputs) and not isinstance(inputs, Padded | Mask)):
        return inputs
    if not isinstance(inputs, Mapping):
        return ((None, _columns(inputs)),)
    if not inputs:
        raise ConfigError("A model's inputs cannot be empty.", hint="Name the fields of each tensor.")
    _check_names(tuple(inputs), "Input tensors")
    return tuple((tensor, _columns(columns)) for tensor, columns in inputs.items())


def _columns(columns: str | Sequence[str] | Padded | Mask) -> Columns:
    if isinstance(columns, Padded | Mask):
        return columns
    if isinstance(columns, str):
        return Fields((columns,))
    return Fields(_names(columns, "Fields of a tensor"))


def read_outputs(outputs: OutputsLike) -> Outputs:
    """Bring a model's `outputs` argument to one form.

    Raises
    ------
    ConfigError
        It is none of the forms that :class:`~sonic_parsl.model.Model` takes, or names a class twice.
    """
    named: Mapping[Any, Any] = outputs if isinstance(outputs, Mapping) else {None: outputs}
    if isinstance(outputs, Mapping):
        _check_names(tuple(outputs), "Output tensors")
    read = tuple((t, o if isinstance(o, Output) else Output(o)) for t, o in named.items())
    _check_names(tuple(name for _, output in read for name in output.names), "Classes of all outputs together")
    return read


def read_fill(fill: float | Mapping[str, float] | None, inputs: Inputs | Prepare | None) -> Fill:
    """Bring a model's `fill` argument to one form.

    Raises
    ------
    ConfigError
        A value is no number, or stands for a field that is no input.
    """
    if fill is None:
        return None
    if not isinstance(inputs, tuple):
        raise ConfigError(
            "A fill value goes with fields named in inputs.", hint="A callable fills missing values itself."
        )
    if not isinstance(fill, Mapping):
        _check_number(fill, "A fill value")
        return fill
    known = {name for _, columns in inputs if not isinstance(columns, Mask) for name in columns.fields}
    for name, value in fill.items():
        _check_number(value, f"The fill value of '{name}'")
        if name not in known:
            raise ConfigError(f"The fill value of '{name}' is of no use: inputs are {sorted(known)}.")
    return tuple(sorted(fill.items()))


def _names(names: Any, what: str) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ConfigError(f"{what} must be a list of names, not {names!r}.")
    _check_names(tuple(names), what)
    return tuple(names)


def _check_names(names: tuple[Any, ...], what: str) -> None:
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{what} must be names, at least one, not {list(names)}.")
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(f"{what} must be different names; {twice} come twice.")


def _check_length(length: Any, what: str) -> None:
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ConfigError(f"The length of {what} must be a whole number, at least 1, not {length!r}.")


def _check_number(value: Any, what: str) -> None:
    if not isinstance(value, Real):
        raise ConfigError(f"{what} must be a number, not {value!r}.")
