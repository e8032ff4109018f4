"""Computes calls in this process, where the pool has no server left and its owner allows it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sonic_parsl.client.call import Call
from sonic_parsl.client.job import Job, bug, parts_of
from sonic_parsl.client.onnx_models import LOCAL_KIND, OnnxModels
from sonic_parsl.client.requests import Gather, count_nans
from sonic_parsl.client.table import check_same
from sonic_parsl.errors import ModelMismatchError, PoolError, PoolLostError, SonicError
from sonic_parsl.kserve import Array
from sonic_parsl.poolref import Fallback
from sonic_parsl.protocol import ServedModel


@dataclass(frozen=True)
class Work:
    """A call to compute.

    Attributes
    ----------
    model
        What the call asked for; a server may have said so.
    why
        Why no server can answer it.
    """

    call: Call
    model: ServedModel
    tensors: Mapping[str, Array]
    why: PoolError


class Local:
    """Stands in for the servers of a pool that is lost.

    Calls are computed one after the other in a thread of its own, whole: what servers have answered of them is
    forgotten, so that no call mixes two kinds of numbers.
    """

    _thread: threading.Thread | None

    def __init__(self, fallback: Fallback) -> None:
        self._fallback = fallback
        self._closed: SonicError | None = None
        self.forget()

    def served(self, name: str, *, version: str | None, tags: Collection[str], why: PoolError) -> ServedModel:
        """Return the newest version of a model that matches.

        Raises
        ------
        PoolLostError
            The pool is lost, and this process cannot compute the model either; says why both.
        """
        try:
            return self._models.find(name, version=version, tags=tags)
        except SonicError as error:
            raise _both(why, error).at(model=name) from None

    def take(self, job: Job, why: PoolError) -> None:
        """Take a call over from the servers. Returns at once."""
        work = Work(job.call, job.model, job.tensors, why)
        job.discard()
        with self._lock:
            self._queue.put(work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sonic-parsl-local", daemon=True)
                self._thread.start()

    def close(self, problem: SonicError) -> None:
        """End after the request that is being computed; calls that are not done fail."""
        self._closed = problem
        with self._lock:
            thread, self._thread = self._thread, None
            self._queue.put(None)
        if thread is not None:
            thread.join()

    def forget(self) -> None:
        """Drop everything: after a fork it is the parent's."""
        self._models = OnnxModels(self._fallback)
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread = None

    def check(self, model: ServedModel, of_servers: ServedModel, server: str = "") -> None:
        """Check that this process may answer with `model` in place of servers.

        Raises
        ------
        ModelMismatchError
            They had another one, or count in another way, and the run may not mix numbers.
        """
        check_same(of_servers, server, model, "")
        if of_servers.numeric_kind != LOCAL_KIND and not self._fallback.mix_numerics:
            raise ModelMismatchError(
                f"Servers count in {of_servers.numeric_kind} for model {model.name}, this process in {LOCAL_KIND}.",
                hint="Set `mix-numerics: true` in the site file if one run may count in both.",
            )

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work.call.finish(self._outcome(work))
            del work  # its tensors may be large, and the next call far away

    def _outcome(self, work: Work) -> dict[str, Array] | SonicError:
        try:
            return self._compute(work, self._model_for(work))
        except SonicError as error:
            return error.at(**work.call.context)
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader must not wait for ever
            return bug(error).at(**work.call.context)

    def _model_for(self, work: Work) -> ServedModel:
        try:
            model = self._models.find(work.model.name, version=work.model.version)
            self.check(model, work.model)
        except SonicError as error:
            raise _both(work.why, error) from None
        return model

    def _compute(self, work: Work, model: ServedModel) -> dict[str, Array]:
        ledger = work.call.ledger
        ledger.computed_here(LOCAL_KIND, _note(model, work.why))
        parts = parts_of(model, work.tensors, ledger.rows)
        gather = Gather(model.outputs, parts, batched=model.max_batch_size > 0)
        for part in parts:
            if self._closed is not None:
                raise self._closed
            if work.call.cancelled():
                return {}
            tensors = {name: array[part] for name, array in work.tensors.items()} if len(parts) > 1 else work.tensors
            gather.place(part, self._models.open(model.name).run(model, tensors), numeric_kind=LOCAL_KIND)
        outputs = gather.result()
        ledger.nans = count_nans(outputs)
        return outputs


def _note(model: ServedModel, why: PoolError) -> str:
    reason = why.message.partition("\n")[0].rstrip(".:")
    return f"Model {model.name} was computed by the workers themselves, in {LOCAL_KIND} with ONNX Runtime. {reason}."


def _both(why: PoolError, error: SonicError) -> PoolLostError:
    """Return the error of a pool that is lost where this process cannot stand in for it either."""
    lost = f"{why.message}\n" if "\n" in why.message else f"{why.message.rstrip('.')}. "
    context = {**why.context, **error.context}
    return PoolLostError(f"{lost}Nor can this process compute the model: {error.message}", hint=error.hint, **context)
