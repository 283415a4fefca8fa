"""The example of docs/training.md runs and learns what it says."""

import pathlib
import re
import runpy

import numpy as np

PAGE = pathlib.Path(__file__).resolve().parents[3] / "docs" / "training.md"


def test_example_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    script = tmp_path / "example.py"
    script.write_text(code)
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(script))
    # The labels are the sums of the inputs, so every weight is 1.
    np.testing.assert_allclose(names["result"].state.params["w"], 1.0, atol=0.05)
    assert (tmp_path / "runs" / "line" / "metrics.jsonl").exists()
