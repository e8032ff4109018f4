"""How the models under ``workflows/models`` were made; needs ``onnx``, which serving them does not."""

from __future__ import annotations
