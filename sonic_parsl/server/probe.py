"""Ask each model before the server is called ready, and again when requests fail."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np

from sonic_parsl.errors import InferenceError, ModelFailedError, ResponseError, ServerStartError
from sonic_parsl.kserve import DTYPES, Array, KServe
from sonic_parsl.protocol import ServedModel, ServerLoad, TensorSpec
from sonic_parsl.server.triton import Triton

logger = logging.getLogger(__name__)

PATIENCE_S = 15.0
"""A model that needs longer for a single row is busy."""


async def probe(stub: KServe, model: ServedModel, *, timeout_s: float) -> bool:
    """Send a model one row of zeros and check that what comes back has the right form.

    A Triton whose Python has numpy 2 is ready, answers, and every output is empty: only asking shows it.

    Returns
    -------
    bool
        Whether zeros are something that it can answer.

    Raises
    ------
    ServerStartError
        The answer is malformed.
    """
    if any(tensor.datatype not in DTYPES for tensor in model.inputs):
        return False  # texts: there is no harmless row to send
    try:
        await _ask(stub, model, timeout_s)
    except ResponseError as error:
        raise ServerStartError(f"Model {model.name} answers its first request wrongly: {error}") from None
    except InferenceError as error:
        # Zeros, or the size 1 for a free axis, may be no valid input of this model: that is its own affair.
        logger.warning("Model %s could not answer a row of zeros: %s", model.name, error)
        return False
    return True


@dataclass
class Watch:
    """Finds out when a Triton that says it is ready no longer computes.

    The process of a python model that was killed or has crashed is not started again since Triton 24.06,
    and a GPU that has met certain errors fails whatever comes after: each request fails, and the server
    says that it is well.

    Attributes
    ----------
    models
        Those that have answered a row of zeros.
    """

    models: list[ServedModel] = field(default_factory=list)
    _failures: int = 0
    _suspect: bool = False

    async def verdict(self, triton: Triton, load: ServerLoad) -> str:
        """Return what is wrong; empty where nothing is, or where it is too early to tell.

        It looks only while requests fail, and twice, at two calls of this: a Triton may be about to mend it.

        Parameters
        ----------
        load
            What Triton has done so far.
        """
        fail, self._failures = load.failures > self._failures, load.failures
        said = await self._first_fault(triton) if fail else ""
        again, self._suspect = self._suspect, bool(said)
        return said if again else ""

    async def _first_fault(self, triton: Triton) -> str:
        for model in self.models:
            try:
                await _ask(triton.stub, model, PATIENCE_S)
            except (ModelFailedError, ResponseError) as error:
                return f"model {model.name} no longer answers what it has answered before: {error.message}"
            except InferenceError:
                continue  # it is busy, or Triton goes away: others see to that
        # Of several processes of a model only one may have died, and another one have answered.
        return "a process of one of its models has died" if triton.has_lost_a_process() else ""


async def _ask(stub: KServe, model: ServedModel, timeout_s: float) -> None:
    """Send one row of zeros; raises where there is no answer, or a malformed one."""
    batched = model.max_batch_size > 0
    tensors = {tensor.name: _zeros(tensor, batched=batched) for tensor in model.inputs}
    names = [tensor.name for tensor in model.outputs]
    rows = 1 if batched else None
    await stub.infer(model.name, model.version, tensors, names, timeout_s=timeout_s, rows=rows)


def _zeros(tensor: TensorSpec, *, batched: bool) -> Array:
    shape = tuple(1 if size == -1 else size for size in tensor.shape)
    return np.zeros((1, *shape) if batched else shape, DTYPES[tensor.datatype])
