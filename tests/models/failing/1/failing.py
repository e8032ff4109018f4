"""A model that fails."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Answers zeros, and fails on everything else."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request, or say that it cannot."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        rows = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
        if rows.any():
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("this model always fails"))
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("OUTPUT0", rows)])
