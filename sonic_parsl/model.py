"""The handle a physicist calls: records in, a lazy record of classes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import awkward as ak
import numpy as np
import numpy.typing as npt
from typing_extensions import override

from sonic_parsl.client.call import Call
from sonic_parsl.client.scope import current_scope
from sonic_parsl.client.sessions import session
from sonic_parsl.columns import (
    Answer,
    Batch,
    empty_record,
    gather,
    gather_arrays,
    lazy_record,
    read_fill,
    read_inputs,
    read_outputs,
    resolve_outputs,
    touch,
    traced_record,
)
from sonic_parsl.columns.specs import Fill, Inputs, InputsLike, Outputs, OutputsLike, Prepare
from sonic_parsl.errors import ConfigError, DeadlineError, InputError, SonicError
from sonic_parsl.protocol import ServedModel

ArrayLike: TypeAlias = ak.Array | npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]


class Service(Protocol):
    """Where a model is asked; a session of the client is one."""

    def served(self, name: str, *, version: str | None, tags: Collection[str], deadline_s: float) -> ServedModel:
        """Return the model that is meant, once a server has it."""

    def submit(
        self, model: ServedModel, tensors: Mapping[str, npt.NDArray[Any]], *, rows: int, deadline_s: float
    ) -> Call:
        """Send tensors of shape (rows, ...)."""


@dataclass(frozen=True, init=False, repr=False)
class Model:
    """A model on the pool's servers, called like a function.

    ::

        tagger = sonic.Model("btag", inputs=["pt", "eta", "mass"], outputs=["light", "charm", "bottom"])
        jets["btag"] = tagger(jets)  # sent now, awaited when jets.btag is first read

    It is plain data: it can be pickled, compared and made where no pool is.

    Parameters
    ----------
    name
        Its name in the servers' model repository.
    inputs
        Which fields become which tensor, one of

        - a list of field names, stacked to a tensor of shape (rows, fields);
        - :class:`~sonic_parsl.columns.Padded`, for lists inside the row;
        - a mapping from tensor name to either of them, to a single field or to
          :class:`~sonic_parsl.columns.Mask`; needed where the model has several inputs;
        - a function from the flat record array (one entry a row) to a mapping from tensor
          name to array; column tracing calls it too, so it should use awkward's functions;
        - None, where the model is called with numpy arrays only.

        Fields are cast to the model's type; a value that a cast would change is an error,
        but for floats that become narrower floats.
    outputs
        Names of the classes, each a field of the result: a list (of one tensor of shape (rows,
        classes)), a single name (one number a row), or a mapping from tensor name to either or to
        :class:`~sonic_parsl.columns.Output`, which also says another type than float32.
    version, tags
        Which version, where there are several: its name, or labels it must have.
    fill
        What stands in for missing numbers, in all fields or by field name. Without it they
        are an error, as missing lists and records always are.
    deadline_s
        Time that a call has until its result is there, in s.

    Raises
    ------
    ConfigError
        An argument is wrong.
    """

    name: str
    inputs: Inputs | Prepare | None
    outputs: Outputs
    version: str | None
    tags: tuple[str, ...]
    fill: Fill
    deadline_s: float

    def __init__(
        self,
        name: str,
        *,
        outputs: OutputsLike,
        inputs: InputsLike = None,
        version: str | None = None,
        tags: Collection[str] = (),
        fill: float | Mapping[str, float] | None = None,
        deadline_s: float = 300.0,
    ) -> None:
        _check_arguments(name, version, tags, deadline_s)
        columns = read_inputs(inputs)
        values = {
            "name": name,
            "inputs": columns,
            "outputs": read_outputs(outputs),
            "version": version,
            "tags": tuple(sorted(set(tags))),
            "fill": read_fill(fill, columns),
            "deadline_s": float(deadline_s),
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    @override
    def __repr__(self) -> str:
        version = f", version={self.version!r}" if self.version else ""
        return f"Model({self.name!r}{version}, outputs={[n for _, output in self.outputs for n in output.names]})"

    def __call__(self, array: ArrayLike, *, lazy: bool = True) -> ak.Array:
        """Send an array's rows to the pool and return their scores.

        Parameters
        ----------
        array
            Records, in lists or not; or one numpy array of shape (rows, ...), or several by tensor name.
        lazy
            Whether to return at once, and wait where a score is first read.

        Returns
        -------
        ak.Array
            A record of one number a class, in the lists that `array` has around its rows.
            A typetracer gives a typetracer, and no row no request: both contact nobody.

        Raises
        ------
        InputError
            The array does not fit the model.
        ModelNotFoundError
            No server has the model.
        SonicError
            The call failed. Where it is lazy, each read of a score raises.
        """
        scored, _ = ask(self, array, session)
        return scored if lazy else ak.materialize(scored)

    def submit(self, array: ArrayLike) -> Scores:
        """Send an array's rows to the pool and return a future of their scores."""
        return Scores(*ask(self, array, session))


class Scores(Future[Any]):
    """A future of the scores, as an array that is wholly there.

    Works with :func:`concurrent.futures.wait` and :func:`asyncio.wrap_future`. Where the call
    failed, :meth:`result` raises what reading a lazy result would raise.
    """

    def __init__(self, array: ak.Array, call: Call | None) -> None:
        super().__init__()
        self._array = array
        self._call = call
        if call is None:
            self.set_result(array)
        else:
            waiting = [self]  # until the end only: the two would keep each other, and the scores, until a collection
            call.add_done_callback(lambda done: waiting.pop()._finish(done))

    def _finish(self, call: Future[Any]) -> None:
        if call.cancelled():
            super().cancel()
        if self.set_running_or_notify_cancel():
            self.set_result(self._array)  # not read yet: that is for the thread that wants it

    @override
    def cancel(self) -> bool:
        """Give the call up, where it is not done."""
        return self._call is not None and self._call.cancel()

    @override
    def result(self, timeout: float | None = None) -> ak.Array:
        """Wait and return the scores.

        Raises
        ------
        DeadlineError
            They are not there after `timeout` s.
        SonicError
            The call failed or was cancelled.
        """
        if self._call is not None:
            self._call.result(timeout)
        return ak.materialize(self._array)

    @override
    def exception(self, timeout: float | None = None) -> SonicError | None:
        """Wait and return what :meth:`result` would raise, or None."""
        wait((self,), timeout)
        if not self.done():
            raise DeadlineError(f"There was no result after {timeout} s.")
        try:
            self.result()
        except SonicError as error:
            return error
        return None


def ask(model: Model, array: ArrayLike, service: Callable[[], Service]) -> tuple[ak.Array, Call | None]:
    """Send an array's rows and return their lazy scores and the call, None where none is needed.

    Parameters
    ----------
    model, array
        As in :class:`Model`.
    service
        Where to ask; not called unless there are rows.

    Raises
    ------
    SonicError
        As :meth:`Model.__call__`.
    """
    try:
        if isinstance(array, ak.Array) and ak.backend(array) == "typetracer":
            return traced_record(touch(array, _inputs(model)), model.outputs), None
        batch = _gather(model, array)
        if not batch.rows:
            return empty_record(batch.axes, model.outputs), None
        return _send(model, batch, service())
    except (InputError, ConfigError) as error:
        chunk = current_scope().chunk
        raise error.at(model=model.name, chunk=str(chunk) if chunk else None) from None


def _send(model: Model, batch: Batch, service: Service) -> tuple[ak.Array, Call]:
    start = time.monotonic()
    served = service.served(model.name, version=model.version, tags=model.tags, deadline_s=model.deadline_s)
    outputs = resolve_outputs(model.outputs, served)
    tensors = batch.tensors(served)
    left_s = model.deadline_s - (time.monotonic() - start)
    if left_s <= 0:  # a pool that may fall back is waited for beyond the call's time, which begins anew then
        left_s = model.deadline_s
    call = service.submit(served, tensors, rows=batch.rows, deadline_s=left_s)
    answer = Answer(call.result, outputs, batch.rows, context=call.context)
    return lazy_record(batch.axes, model.outputs, answer, batch.rows), call


def _gather(model: Model, array: ArrayLike) -> Batch:
    if isinstance(array, np.ndarray | Mapping):
        return gather_arrays(array)
    if not isinstance(array, ak.Array):
        raise InputError(
            f"A model takes awkward or numpy arrays, not {type(array).__name__}.",
            hint="Keep the array's dimension: jets[:1] instead of jets[0]; compute dask arrays first.",
        )
    if ak.backend(array) != "cpu":
        raise InputError(
            f"The array is in the memory of '{ak.backend(array)}'.", hint="Copy it: ak.to_backend(array, 'cpu')."
        )
    return gather(array, _inputs(model), model.fill)


def _inputs(model: Model) -> Inputs | Prepare:
    if model.inputs is None:
        raise InputError(
            "The model was made without inputs, so it takes numpy arrays only.", hint="Name them: Model(inputs=[...])."
        )
    return model.inputs


def _check_arguments(name: Any, version: Any, tags: Any, deadline_s: Any) -> None:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"A model's name must be a text, not {name!r}.")
    if version is not None and (not isinstance(version, str) or not version):
        raise ConfigError(f"A model's version must be a text, such as '1', not {version!r}.")
    if isinstance(tags, str) or not all(isinstance(tag, str) and tag for tag in tags):
        raise ConfigError(f"A model's tags must be a list of texts, not {tags!r}.")
    if isinstance(deadline_s, bool) or not isinstance(deadline_s, int | float) or not deadline_s > 0:
        raise ConfigError(f"A call's deadline must be more than 0 s, not {deadline_s!r}.")
