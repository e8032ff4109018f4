"""Identity that runs out of memory when it is loaded, or for certain rows."""

from __future__ import annotations

import json
from typing import Any

import triton_python_backend_utils as pb_utils

MUCH = 2**45
"""Bytes: more than any machine gives."""


class TritonPythonModel:
    """Asks for much memory ``when`` it is ``loaded`` or ``asked``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Take memory now, where the configuration says so."""
        if json.loads(args["model_config"])["parameters"]["when"]["string_value"] == "loaded":
            bytearray(MUCH)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its rows."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        rows = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
        if rows[0, 0] > 1000:
            bytearray(MUCH)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("OUTPUT0", rows)])
