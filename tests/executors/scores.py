from __future__ import annotations

from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import onnxruntime
from coffea.nanoevents import NanoEventsFactory
from coffea.processor import Runner
from typing_extensions import override

from sonic_parsl.workflows import btag_ttbar, samples
from sonic_parsl.workflows.btag_inputs import CLASSES, FEATURES

MODEL = Path(btag_ttbar.__file__).parent / "models" / "btag" / "1" / "model.onnx"


class Scores(btag_ttbar.BTagTTbar):
    """Brings every score home, with the jets' coordinates."""

    @override
    def process(self, events: Any) -> dict[str, Any]:
        scores = self.tagger(events.Jet)
        return {
            "events": len(events),
            "scores": {
                tuple(events.metadata[name] for name in ("filename", "entrystart", "entrystop")): np.stack(
                    [ak.to_numpy(ak.flatten(scores[name])) for name in CLASSES], axis=1
                )
            },
        }


def in_process(path: str, start: int, stop: int) -> np.ndarray[Any, Any]:
    """The same scores from ONNX Runtime in this process."""
    events = NanoEventsFactory.from_root(
        {path: "Events"}, schemaclass=btag_ttbar.schema, entry_start=start, entry_stop=stop, mode="virtual"
    ).events()
    columns = [ak.to_numpy(ak.flatten(events.Jet[name])).astype("float32") for name in FEATURES]
    session = onnxruntime.InferenceSession(MODEL)
    return np.asarray(session.run(["scores"], {"features": np.stack(columns, axis=1)})[0])


def run(executor: Any, processor: Any, chunksize: int = 60) -> Any:
    runner = Runner(executor=executor, schema=btag_ttbar.schema, chunksize=chunksize)
    return runner(samples.fileset(), processor)


def assert_scores_are_right(out: Any) -> None:
    assert out["events"] == 400
    for (path, start, stop), scores in out["scores"].items():
        np.testing.assert_allclose(scores, in_process(path, start, stop), atol=1e-6)
    assert sum(map(len, out["scores"].values())) == 1504 + 1636
