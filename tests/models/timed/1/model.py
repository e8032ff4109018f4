"""Identity with a slept service time, set by the parameters ``t0_ms`` and ``t_row_us``."""

from __future__ import annotations

import json
import time
from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """A device whose service time for a request of n rows is t0 + t_row * n."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the service time from the model's configuration."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.t0_s = float(parameters["t0_ms"]["string_value"]) * 1e-3
        self.t_row_s = float(parameters["t_row_us"]["string_value"]) * 1e-6

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests one after the other."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        rows = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
        time.sleep(self.t0_s + self.t_row_s * len(rows))
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("OUTPUT0", rows)])
