"""Ask each model once before the server is called ready."""

from __future__ import annotations

import logging

import numpy as np

from sonic_parsl.errors import InferenceError, ResponseError, ServerStartError
from sonic_parsl.kserve import DTYPES, Array, KServe
from sonic_parsl.protocol import ServedModel, TensorSpec

logger = logging.getLogger(__name__)


async def probe(stub: KServe, model: ServedModel, *, timeout_s: float) -> None:
    """Send a model one row of zeros and check that what comes back has the right form.

    A Triton whose Python has numpy 2 is ready, answers, and every output is empty: only asking shows it.

    Raises
    ------
    ServerStartError
        The answer is malformed.
    """
    if any(tensor.datatype not in DTYPES for tensor in model.inputs):
        return  # texts: there is no harmless row to send
    batched = model.max_batch_size > 0
    tensors = {tensor.name: _zeros(tensor, batched=batched) for tensor in model.inputs}
    names = [tensor.name for tensor in model.outputs]
    rows = 1 if batched else None
    try:
        await stub.infer(model.name, model.version, tensors, names, timeout_s=timeout_s, rows=rows)
    except ResponseError as error:
        raise ServerStartError(f"Model {model.name} answers its first request wrongly: {error}") from None
    except InferenceError as error:
        # Zeros, or the size 1 for a free axis, may be no valid input of this model: that is its own affair.
        logger.warning("Model %s could not answer a row of zeros: %s", model.name, error)


def _zeros(tensor: TensorSpec, *, batched: bool) -> Array:
    shape = tuple(1 if size == -1 else size for size in tensor.shape)
    return np.zeros((1, *shape) if batched else shape, DTYPES[tensor.datatype])
