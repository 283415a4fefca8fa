"""Sources: laziness, order, fields, bytes that are not UTF-8, empty documents."""

from __future__ import annotations

import gzip
import json

import pytest

from pangu_jax.data.text import (
    ReadLog,
    ReadRules,
    SourceConfig,
    TextDataError,
    TextDataWarning,
    day_one_sources,
    read_source,
    read_sources,
    source_notice,
)
from pangu_jax.data.text.sources import NOTICES
from pangu_jax.data.text.user_files import tfds_documents


def documents(tmp_path, kind, **more):
    config = SourceConfig(kind, path=str(tmp_path), **({"domain": "english"} | more))
    return [(d.id, d.text) for d in read_source(config)]


def test_folder_in_order_of_paths_hidden_left_out(tmp_path):
    for name, text in [("b.txt", "two"), ("a/z.md", "one"), (".git/x.txt", "no"), ("c.bin", "no")]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert documents(tmp_path, "folder") == [("a/z.md", "one"), ("b.txt", "two")]
    assert documents(tmp_path, "folder", suffixes=(".bin",)) == [("c.bin", "no")]


def test_bytes_that_are_not_utf8(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "good.txt").write_bytes(b"\xef\xbb\xbftea")
    config = SourceConfig("folder", "english", str(tmp_path))
    with pytest.raises(TextDataError, match=r"bad\.txt: byte 0xe9 at offset 3 is not UTF-8"):
        list(read_source(config))
    log = ReadLog()
    texts = [d.text for d in read_source(config, rules=ReadRules("replace"), log=log)]
    assert texts == ["caf\ufffd au lait", "tea"] and log.replaced == 1
    log = ReadLog()
    with pytest.warns(TextDataWarning, match="left out"):
        texts = [d.text for d in read_source(config, rules=ReadRules("skip"), log=log)]
    assert texts == ["tea"] and (log.skipped, log.documents, log.bytes) == (1, 1, 3)


def test_the_offset_counts_from_the_start_of_the_file(tmp_path):
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfab\xff")
    with pytest.raises(TextDataError, match="byte 0xff at offset 5"):
        documents(tmp_path, "folder")
    (tmp_path / "bom.txt").unlink()
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(TextDataError, match="line 2: byte 0xff at offset 24"):
        documents(tmp_path, "jsonl")


def test_empty_documents_are_counted_or_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": " \\n"}\n\n{"text": null}\n')
    config = SourceConfig("jsonl", "english", str(tmp_path))
    log = ReadLog()
    assert [d.text for d in read_source(config, log=log)] == ["a"]
    assert log.empty == 2
    with pytest.raises(TextDataError, match="line 2 holds no text"):
        list(read_source(config, rules=ReadRules(empty="error")))


def test_jsonl_fields_nested_and_compressed(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as out:
        out.write(json.dumps({"meta": {"body": "one"}}) + "\n")
    (tmp_path / "b.json").write_text(json.dumps({"meta": {"body": "two"}}))
    rows = documents(tmp_path, "jsonl", field="meta.body")
    assert rows == [("a.jsonl.gz:1", "one"), ("b.json:1", "two")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ('{"body": "x"}', "no field 'text'; it has body"),
        ('{"text": 3}', "'text' is int"),
        ("[1]", "needs an object"),
        ('{"text": "\\ud800"}', "lone surrogate"),
    ],
)
def test_jsonl_errors_name_the_line(tmp_path, line, message):
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    with pytest.raises(TextDataError, match=message):
        documents(tmp_path, "jsonl")


def test_parquet_column(tmp_path):
    import polars as pl

    pl.DataFrame({"body": ["one", None, "two"], "n": [1, 2, 3]}).write_parquet(
        tmp_path / "part.parquet"
    )
    rows = documents(tmp_path, "parquet", field="body")
    assert rows == [("part.parquet:0", "one"), ("part.parquet:2", "two")]
    with pytest.raises(TextDataError, match="no column 'text'; it has body, n"):
        documents(tmp_path, "parquet")
    with pytest.raises(TextDataError, match="'n' holds Int64"):
        documents(tmp_path, "parquet", field="n")
    (tmp_path / "part.parquet").write_text("no")
    with pytest.raises(TextDataError, match="cannot be read as Parquet"):
        documents(tmp_path, "parquet")


def test_tensorflow_datasets_feature(monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    class Builder:
        class info:  # noqa: N801
            name, version, features = "toy", "1.0.0", {"text": None, "label": None}

        def download_and_prepare(self):
            pass

        def as_data_source(self, split):
            return [{"text": f"{split} é".encode(), "label": 1}, {"text": b"", "label": 0}]

    monkeypatch.setattr(tfds, "builder", lambda name, **kwargs: Builder())
    (document,) = tfds_documents("toy", "english", split="test")
    assert (document.text, document.source, document.id) == ("test é", "toy-1.0.0", "test:0")
    with pytest.raises(TextDataError, match="no feature 'body'; it has text, label"):
        list(tfds_documents("toy", "english", feature="body"))
    with pytest.raises(TextDataError, match="not text"):
        list(tfds_documents("toy", "english", feature="label"))


def test_standard_library_is_code_without_tests():
    first = list(read_source(SourceConfig("stdlib", max_documents=40)))
    again = list(read_source(SourceConfig("stdlib", max_documents=40)))
    assert first == again and len(first) == 40
    assert {d.domain for d in first} == {"code"}
    assert [d.id for d in first] == sorted(d.id for d in first)
    assert "_collections_abc.py" in {d.id for d in first}
    assert not any("test" in d.id.split("/")[0] for d in first)


def test_installed_packages_give_descriptions_and_docstrings():
    docs = list(read_source(SourceConfig("package_docs", packages=("numpy", "PyTest"))))
    assert {d.source.split("-")[0] for d in docs} == {"numpy", "pytest"}
    assert sum(d.id == "METADATA" for d in docs) == 2
    strings = read_source(SourceConfig("docstrings", packages=("einops",), domain="math"))
    strings = list(strings)
    assert strings and all(d.domain == "math" and len(d.text) >= 200 for d in strings)


def test_reading_is_lazy(tmp_path):
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    stream = read_source(SourceConfig("folder", "english", str(tmp_path)))
    assert next(stream).text == "fine"
    with pytest.raises(TextDataError):
        next(stream)


def test_logs_of_several_sources(tmp_path):
    (tmp_path / "a.txt").write_text("é")
    config = SourceConfig("folder", "english", str(tmp_path))
    logs = {}
    assert len(list(read_sources([config, config], logs=logs))) == 2
    assert [logs[i].bytes for i in (0, 1)] == [2, 2]


def test_evaluation_sets_are_read_only_when_asked():
    assert [c.kind for c in day_one_sources()] == ["stdlib", "package_docs", "docstrings"]
    assert {c.kind for c in day_one_sources(evaluation_sets=True)} >= {"human_eval", "bfcl"}


def test_every_built_in_source_has_a_notice():
    assert "MIT" in source_notice(SourceConfig("human_eval"))
    assert set(NOTICES) == {c.kind for c in day_one_sources(evaluation_sets=True)}


def test_settings_that_cannot_be():
    with pytest.raises(TextDataError, match="source kind 'parket'.*Did you mean 'parquet'"):
        SourceConfig("parket")
    with pytest.raises(TextDataError, match="needs a path and a domain"):
        SourceConfig("folder", path="x")
    with pytest.raises(TextDataError, match="domain 'englsh'.*Did you mean 'english'"):
        read_source(SourceConfig("folder", "englsh", "x"))
    read_source(SourceConfig("folder", "law", "x"), extra_domains=("law",))
    with pytest.raises(TextDataError, match="bad_utf8"):
        ReadRules("ignore")
    with pytest.raises(TextDataError, match="no file or folder"):
        list(read_source(SourceConfig("folder", "english", "/nowhere/at/all")))
