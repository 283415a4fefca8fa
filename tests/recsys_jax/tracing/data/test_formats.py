"""Every format read back as it was written, and hand-written files of the formats."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_jax.tracing.data import (
    CleaningConfig,
    DataError,
    clean,
    load,
    write_lines,
    write_pykt,
    write_table,
)
from recsys_jax.tracing.data.answer_tables import (
    ASSISTMENTS_2009,
    ASSISTMENTS_2012,
    AnswerColumns,
    read_answer_table,
    read_ednet,
)
from recsys_jax.tracing.data.lines import read_hakt, read_lines, read_pebg
from recsys_jax.tracing.data.pykt import read_pykt
from recsys_jax.tracing.data.text import read_text

ALL = CleaningConfig(min_answers=1, long="keep")


def assert_same(a, b, timestamps=False):
    for name in ("student", "question", "response", "student_ids", "question_ids", "concept_ids"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    np.testing.assert_array_equal(a.concepts.offsets, b.concepts.offsets)
    np.testing.assert_array_equal(a.concepts.values, b.concepts.values)
    if timestamps:
        np.testing.assert_array_equal(a.timestamp, b.timestamp)


def with_times(log, seed):
    """Strictly rising times, so that a format with times cannot join what it should not."""
    gaps = np.random.default_rng(seed).integers(1, 10**9, len(log))
    return dataclasses.replace(log, timestamp=np.cumsum(gaps))


@given(st.integers(0, 999))
def test_round_trips(tmp_path_factory, random_log, seed):
    folder = tmp_path_factory.mktemp("formats")
    log = with_times(random_log(seed), seed)
    write_lines(log, folder / "six.txt", "six_line")
    assert_same(log, clean(read_lines(folder / "six.txt", "six_line"), ALL)[0], True)
    write_lines(log, folder / "four.txt", "four_line")
    assert_same(log, clean(read_lines(folder / "four.txt", "four_line"), ALL)[0])
    write_pykt(log, folder / "pykt.csv")
    assert_same(log, clean(read_pykt(folder / "pykt.csv"), ALL)[0], True)
    for kind in ("csv", "parquet"):
        write_table(log, folder / f"table.{kind}")
        raw = read_answer_table(
            folder / f"table.{kind}", kind, AnswerColumns(timestamp="timestamp")
        )
        assert_same(log, clean(raw, ALL)[0], True)


def test_three_lines_keep_concepts_and_responses(tmp_path, random_log):
    log = random_log(3)
    write_lines(log, tmp_path / "a.txt", "three_line")
    back, report = clean(read_lines(tmp_path / "a.txt", "three_line"), ALL)
    np.testing.assert_array_equal(log.response, back.response)
    np.testing.assert_array_equal(log.concepts.values, back.concepts.values)
    assert not back.has_questions and "no question ids" in str(report)
    # Each distinct set stands as one question.
    sets = {tuple(log.concepts[i]) for i in range(len(log))}
    assert back.num_questions == len(sets)


def test_three_line_of_single_concepts_names_questions_after_them(tmp_path):
    (tmp_path / "a.csv").write_text("3\n5,5,8,\n1,0,1,\n2\n8,5\n0,0\n")
    log, _ = clean(read_lines(tmp_path / "a.csv", "three_line"), ALL)
    assert log.question.tolist() == [1, 1, 2, 2, 1]
    assert log.question_ids.tolist() == log.concept_ids.tolist() == [-1, 5, 8]
    assert log.student_ids.tolist() == [1, 2]


def test_pykt_padding_windows_and_original_ids(tmp_path):
    (tmp_path / "keyid2idx.json").write_text(
        json.dumps({"questions": {"q7": 0, "q8": 1}, "concepts": {"70": 0, "80": 1}, "max": 3})
    )
    (tmp_path / "test.csv").write_text(
        "fold,uid,questions,concepts,responses,selectmasks,is_repeat\n"
        '1,9,"0,1,1,-1","0,0,1,-1","1,0,0,-1","1,1,1,-1","0,0,1,-1"\n'
        '1,9,"1,0,1","1,0,0","0,1,1","-1,1,1","0,0,0"\n'
        '-1,4,"1,-1","0_1,-1","1,-1","1,-1","0,-1"\n'
    )
    log, report = clean(read_pykt(tmp_path / "test.csv"), ALL)
    assert log.student_ids.tolist() == [4, 9] and log.fold.tolist() == [-1, 1]
    got = [
        (int(log.student_ids[s]), log.question_ids[q], log.concept_ids[c].tolist(), int(r))
        for s, q, c, r in zip(log.student, log.question, map(log.concepts.__getitem__, range(9)),
                              log.response, strict=False)
    ]  # fmt: skip
    assert got == [
        (4, "q8", [70, 80], 1),
        (9, "q7", [70], 1), (9, "q8", [70, 80], 0), (9, "q7", [70], 1), (9, "q8", [70], 1),
    ]  # fmt: skip
    assert report.concept_expanded == 1


def test_pykt_padding_without_masks(tmp_path):
    (tmp_path / "a.csv").write_text('uid,concepts,responses\n3,"1,2,-1,-1","1,0,-1,-1"\n')
    log, report = clean(read_pykt(tmp_path / "a.csv"), ALL)
    assert len(log) == 2 and report.invalid_response == 0 and log.fold is None


def test_akt_folder_gives_folds(tmp_path):
    for fold in (1, 2, 3):
        (tmp_path / f"x_test{fold}.csv").write_text(
            f"0,5{fold}\n11,11,12\n1,2,1\n1,1,0\n1,6{fold}\n12,11\n1,2\n0,1\n"
        )
    data = load(
        {"kind": "akt", "path": str(tmp_path), "clean": {"min_answers": 1},
         "split": {"kind": "given", "fold": 1}}
    )  # fmt: skip
    parts = [data.log.student_ids[getattr(data.splits, p)].tolist()
             for p in ("train", "valid", "test")]  # fmt: skip
    assert parts == [[51, 61], [53, 63], [52, 62]]
    assert data.report.concept_expanded == 3


def test_a_student_in_two_folds_is_refused(tmp_path):
    for fold in (1, 2):
        (tmp_path / f"x_test{fold}.csv").write_text("0,5\n11\n1\n1\n")
    with pytest.raises(DataError, match="student 5 is in fold 1 and in fold 2"):
        read_lines(tmp_path, "four_line")


def test_pebg(tmp_path):
    (tmp_path / "data.txt").write_text("[2]\n[0, 1]\n[1, 0]\n[1, 0]\n[1]\n[0]\n[7]\n[1]\n")
    (tmp_path / "pro_id_dict.txt").write_text("{'q10': 0, 'q2': 1}")
    (tmp_path / "pro_skill_dict.txt").write_text("{'q10': '5;3', 'q2': '9'}")
    log, report = clean(read_pebg(tmp_path), ALL)
    assert log.question_ids[log.question].tolist() == ["q2", "q10", "#7"]
    assert [log.concept_ids[log.concepts[i]].tolist() for i in range(3)] == [
        ["9"], ["3", "5"], ["unknown"],
    ]  # fmt: skip
    assert report.missing_concept == 1 and any("lacks" in note for note in report.notes)


def test_hakt(tmp_path):
    for folder in ("encode", "train_test"):
        (tmp_path / folder).mkdir()
    (tmp_path / "encode/question_id_dict.txt").write_text("{500: 0, 400: 1}")
    (tmp_path / "encode/skill_id_dict.txt").write_text("{'97_99': 0, '3': 1}")
    for part, users in (("train", [31]), ("test", [32, 33])):
        base = tmp_path / "train_test"
        (base / f"{part}_users.txt").write_text(str(users))
        (base / f"{part}_question.txt").write_text("2\n0,1\n1,0\n")
        (base / f"{part}_skill.txt").write_text("2\n0,1\n1,0\n")
    log, _ = clean(read_hakt(tmp_path), ALL)
    assert log.student_ids.tolist() == ["31", "test:1"] and log.fold.tolist() == [0, -1]
    assert log.question_ids.tolist() == [-1, 400, 500]
    assert log.concept_ids[log.concepts[0]].tolist() == [97, 99]


def test_raw_assistments(tmp_path):
    """Latin-1 skill names, a float skill column, shuffled rows, an expanded answer."""
    path = tmp_path / "skill_builder.csv"
    path.write_bytes(
        "order_id,user_id,problem_id,correct,skill_id,skill_name\n"
        "12,1,50,1,7.0,Fl\u00e4che\n"
        "10,1,51,0,8.0,Cosine\n"
        "12,1,50,1,9.0,Fl\u00e4che\n"
        "11,1,52,0.5,7.0,x\n"
        "13,1,53,1,,\n".encode("latin-1")
    )
    log, report = clean(read_answer_table(path, "csv", ASSISTMENTS_2009), ALL)
    assert log.question_ids[log.question].tolist() == [51, 50, 53]
    assert [log.concept_ids[log.concepts[i]].tolist() for i in range(3)] == [
        ["8"], ["7", "9"], ["unknown"],
    ]  # fmt: skip
    assert (report.fractional, report.concept_expanded, report.out_of_order) == (1, 1, 2)


def test_raw_assistments_2012_goes_by_start_time(tmp_path):
    path = tmp_path / "2012.csv"
    path.write_text(
        "problem_log_id,user_id,problem_id,correct,skill_id,start_time,skill\n"
        "3,8,60,1,5,2012-09-28 15:11:27.0,a\n"
        "4,8,61,0,5,2012-09-28 15:10:02.257,a\n"
        "5,8,60,1,,2012-10-28 00:00:00.0,\n"
    )
    data = {"kind": "assistments_2012", "path": str(path), "clean": {"min_answers": 1}}
    with pytest.raises(DataError, match="The valid part has no students: 1 students are too few"):
        load(data)
    raw = read_answer_table(path, "csv", ASSISTMENTS_2012)
    log, report = clean(raw, ALL)
    assert log.question_ids[log.question].tolist() == [61, 60, 60]
    assert log.timestamp[1] - log.timestamp[0] == 84_743
    assert (report.missing_concept, report.out_of_order) == (1, 1)


def test_ednet_kt1(tmp_path):
    (tmp_path / "KT1").mkdir()
    (tmp_path / "contents").mkdir()
    (tmp_path / "contents/questions.csv").write_text(
        "question_id,bundle_id,explanation_id,correct_answer,part,tags,deployed_at\n"
        "q1,b1,e1,b,1,1;2;179,1\nq2,b2,e2,a,1,-1,1\n"
    )
    head = "timestamp,solving_id,question_id,user_answer,elapsed_time\n"
    (tmp_path / "KT1/u1.csv").write_text(head + "9,2,q2,c,5\n5,1,q1,b,5\n7,3,q9,a,5\n8,4,q1,,5\n")
    (tmp_path / "KT1/u2.csv").write_text(head + "9,2,q2,a,5\n")
    log, report = clean(read_ednet(tmp_path), ALL)
    assert log.student_ids[log.student].tolist() == ["u1", "u1", "u2"]
    assert log.question_ids[log.question].tolist() == ["q1", "q2", "q2"]
    assert log.response.tolist() == [1, 0, 1] and log.timestamp.tolist() == [5, 9, 9]
    assert log.concepts.lengths.tolist() == [3, 1, 1]  # the last two have no tag
    assert report.invalid_response == 2 and report.missing_concept == 2
    assert report.out_of_order == 1
    assert len(set(read_ednet(tmp_path, num_students=1).student)) == 1


def test_dates_become_milliseconds(tmp_path):
    (tmp_path / "a.csv").write_text(
        "student,question,concepts,response,when\n"
        "a,x,k,true,2012-09-28 15:11:27.5\na,y,k,FALSE,2012-09-28 15:11:26\n"
    )
    raw = read_answer_table(tmp_path / "a.csv", "csv", AnswerColumns(timestamp="when"))
    assert (raw.timestamp[0] - raw.timestamp[1]) == 1500
    assert raw.response.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("ä\nb".encode(), "ä\nb"),
        (b"\xef\xbb\xbfa\nb", "a\nb"),
        ("ä\nö".encode() + "\né".encode("latin-1"), "ä\nö\né"),
        ("aä".encode("utf-16"), "aä"),
    ],
)
def test_encodings(tmp_path, content, text):
    (tmp_path / "a").write_bytes(content)
    assert read_text(tmp_path / "a")[0] == text


def test_mixed_encodings_are_counted_and_utf8_can_be_required(tmp_path):
    path = tmp_path / "a"
    path.write_bytes("ä\n".encode() + "é\n".encode("latin-1"))
    assert read_text(path)[1] == ("1 of 2 lines are not UTF-8, read as Latin-1.",)
    with pytest.raises(DataError, match="not UTF-8 .byte 0xe9"):
        read_text(path, "utf-8")


@pytest.mark.parametrize(
    ("content", "layout", "message"),
    [
        ("3\n1,2,3\n1,0\n", "three_line", "3 concepts values but 2 responses"),
        ("3\n1,2\n1,0\n1\n", "three_line", "not a multiple of 3 lines"),
        ("2\n1,2\n1,x\n", "three_line", "response 'x' is not a number"),
        ("", "three_line", "is empty"),
        ("a,2\n1,2\n1,2\n1,0\n5,soon\nNA\n", "six_line", "timestamps must be whole numbers"),
    ],
)
def test_broken_files(tmp_path, content, layout, message):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        read_lines(tmp_path / "a.txt", layout)


def test_missing_columns_and_bad_cells(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("student,question,concept,response,t\na,1,2,1,x\n")
    with pytest.raises(DataError, match="no column 'concepts'.*Did you mean 'concept'"):
        read_answer_table(path, "csv", AnswerColumns())
    columns = AnswerColumns(concepts="concept", timestamp="t")
    with pytest.raises(DataError, match="data row 1: timestamp 'x' is not a number or a date"):
        read_answer_table(path, "csv", columns)
    with pytest.raises(DataError, match="data row 1: response 'x'"):
        read_answer_table(path, "csv", AnswerColumns(concepts=None, response="t"))
    with pytest.raises(DataError, match="There is no file"):
        read_answer_table(tmp_path / "b.csv", "csv", columns)
