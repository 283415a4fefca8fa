"""Counts of the real sets; skipped where they are absent."""

from __future__ import annotations

import json

import numpy as np
import pytest

from recsys_jax.tracing.data import CleaningConfig, DataError, load

ALL = {"min_answers": 1, "long": "keep"}
pytestmark = pytest.mark.filterwarnings("ignore::recsys_jax.data.errors.DataWarning")


@pytest.fixture(scope="module")
def folder(shared_data):
    path = shared_data / "knowledge_tracing"
    if not path.is_dir():
        pytest.skip("the real logs of knowledge tracing are absent")
    return path


def test_assistments_2009_of_akt(folder):
    path = str(folder / "assist2009_pid")
    data = load({"kind": "akt", "path": path, "split": {"kind": "given"}})
    report = data.report
    assert (report.rows_read, report.students_read) == (325_589, 4150)
    assert report.students_kept == 2982  # those with ten answers, as the spec counts them
    # Every expanded row has the response of the row before it. 51,028 rows are 15.9 % of those
    # that have one before them, 15.7 % of all.
    assert report.concept_expanded == 51_028
    assert report.concept_expanded / (325_589 - 4150) == pytest.approx(0.159, abs=5e-4)
    assert [len(getattr(data.splits, p)) for p in ("train", "valid", "test")] == [1791, 578, 613]
    kept = load(
        {"kind": "akt", "path": path, "split": {"kind": "given"},
         "clean": {"concept_rows": "keep"}}
    )  # fmt: skip
    with pytest.raises(DataError, match="repeat the answer before them"):
        kept.evaluation_batches("test", batch_size=8)


def test_assistments_2009_of_hakt(folder):
    data = load(
        {"kind": "hakt", "path": str(folder / "assist2009_questions"),
         "split": {"kind": "given"}, "clean": ALL}
    )  # fmt: skip
    assert (data.report.rows_kept, data.log.num_students) == (259_105, 4160)
    assert data.log.num_questions == 15_680 and data.report.concept_expanded == 0
    assert len(data.splits.test) == 830
    sets = {tuple(data.log.concepts[i]) for i in range(len(data.log))}
    assert len(sets) == 145  # joint skills


def test_ednet_of_pebg(folder):
    data = load({"kind": "pebg", "path": str(folder / "ednet_5k"), "clean": ALL})
    assert (data.report.rows_kept, data.log.num_students) == (222_141, 5002)
    assert data.report.missing_concept == 0 and data.report.cut_rows == 0
    assert np.diff(data.log.offsets).max() == 200


def test_assistments_2015_of_pykt(folder):
    path = folder / "pykt/assist2015"
    data = load({"kind": "pykt", "path": str(path), "split": {"kind": "given"}, "clean": ALL})
    assert data.log.num_students == 15_275 + 3_818 and data.log.num_concepts == 100
    assert len(data.splits.test) == 3_818
    original = json.loads((path / "keyid2idx.json").read_text())["concepts"]
    assert set(map(str, data.log.concept_ids[1:])) == set(original)


def test_assistments_2012_in_three_lines(folder):
    data = load(
        {"kind": "three_line", "path": str(folder / "assist2012_skills/A2012_skill_id_test.csv"),
         "clean": ALL}
    )  # fmt: skip
    assert (data.report.rows_kept, data.log.num_students) == (560_426, 5804)
    assert not data.log.has_questions
    assert data.config.clean == CleaningConfig(**ALL)
