"""JSON lines of prompts and answers: bad lines, interruptions, repairs, changed prompts."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_jax.inference import Completion, Grammar, RequestError, SamplingParams, TokenLogprob
from pangu_jax.inference.jsonl import Answered, answer_file, read_prompts


def write(path, *lines):
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
    path.write_text(text, encoding="utf-8")
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Echo:
    """Answers with the prompt in capitals; remembers what it was asked; may stop on the way."""

    def __init__(self, stop_after=None, error=KeyboardInterrupt):
        self.asked, self.stop_after, self.error = [], stop_after, error

    def __call__(self, prompts):
        self.asked += [prompt.id for prompt in prompts]
        for count, prompt in enumerate(prompts):
            if count == self.stop_after:
                raise self.error
            text = prompt.prompt or prompt.messages[-1]["content"]
            yield Completion(
                id=prompt.id,
                text=text.upper(),
                token_ids=(1, 2),
                finish_reason="stop",
                prompt_tokens=len(text),
            )


def test_fields_of_a_line(tmp_path):
    messages = [{"role": "user", "content": "é"}, {"role": "assistant", "tool_calls": [{}]}]
    path = write(
        tmp_path / "in.jsonl",
        {"prompt": "a"},
        "",
        {"messages": messages, "id": 7, "temperature": 1, "stop": "x", "stop_token_ids": [3]},
        {"prompt": "c", "id": "c", "max_tokens": None, "adapters": {"one": 1, "two": 0.5}},
        {"prompt": "d", "grammar": {"kind": "json_schema", "source": {"type": "string"}}},
        {"prompt": "e", "grammar": {"kind": "regex", "source": "a+"}, "stop": []},
    )
    first, second, third, fourth, fifth = read_prompts(path, SamplingParams(top_k=5, stop=("y",)))
    assert (first.id, first.line, first.prompt, first.messages) == ("1", 1, "a", None)
    assert first.sampling == SamplingParams(top_k=5, stop=("y",))
    assert (second.id, second.line, second.messages) == ("7", 3, tuple(messages))
    assert second.sampling == SamplingParams(
        top_k=5, temperature=1, stop=("x",), stop_token_ids=(3,)
    )
    assert third.adapters == (("one", 1.0), ("two", 0.5)) and third.sampling.max_tokens is None
    assert json.loads(fourth.sampling.grammar.source) == {"type": "string"}
    assert fifth.sampling.grammar == Grammar(kind="regex", source="a+")
    assert fifth.sampling.stop == ()


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"prompt": "a"', "line 2 is not JSON: .* column 15"),
        ("[1]", r"line 2: \[1\] is not an object"),
        ({"promt": "a"}, "line 2: the field 'promt' is unknown \\(did you mean 'prompt'\\?\\)"),
        ({"prompt": "a", "max_token": 3}, "did you mean 'max_tokens'.*allowed: id, prompt"),
        ({"prompt": "a", "messages": []}, "exactly one of"),
        ({"id": "x"}, "exactly one of"),
        ({"prompt": ""}, "prompt='' is not allowed"),
        ({"prompt": ["a"]}, "prompt="),
        ({"messages": []}, r"messages=\[\]"),
        ({"messages": [{"content": "a"}]}, r"messages\[0\]=.*'role'"),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\]\.content=3"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]\.content=None"),
        ({"prompt": "a", "id": True}, "id=True is not allowed; a text or an integer"),
        ({"prompt": "a", "id": "1"}, "the id '1' stands on line 1 already"),
        ({"prompt": "a", "temperature": "hot"}, "temperature='hot' is not allowed; a number"),
        ({"prompt": "a", "temperature": -1}, "line 2: temperature=-1.0 is not allowed"),
        ('{"prompt": "a", "temperature": NaN}', "line 2: temperature=nan"),
        ({"prompt": "a", "seed": 1.5}, "seed=1.5 is not allowed; an integer"),
        ({"prompt": "a", "stop": [1]}, "stop="),
        ({"prompt": "a", "grammar": "a+"}, "grammar='a\\+'.*'kind' and 'source'"),
        ({"prompt": "a", "grammar": {"kind": "yaml", "source": ""}}, "line 2: grammar kind 'yaml'"),
        ({"prompt": "a", "grammar": {"kind": "regex", "source": {}}}, "texts"),
        ({"prompt": "a", "adapters": {"x": "1"}}, "adapters="),
        ('{"prompt": "\\ud800"}', "line 2 holds half of a surrogate pair"),
    ],
)
def test_bad_lines(tmp_path, line, named):
    path = write(tmp_path / "in.jsonl", {"prompt": "a"}, line)
    echo = Echo()
    with pytest.raises(RequestError, match=named):
        answer_file(path, tmp_path / "out.jsonl", echo)
    assert not echo.asked and not (tmp_path / "out.jsonl").exists()


def test_files_that_are_none(tmp_path):
    with pytest.raises(RequestError, match="There is no file"):
        read_prompts(tmp_path / "absent.jsonl")
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(RequestError, match="line 1 is not UTF-8"):
        read_prompts(path)
    write(path, {"prompt": "a"})
    with pytest.raises(RequestError, match="same file"):
        answer_file(path, path, Echo())
    for content in (b"# Title\nwords", b"words", b'{"a": 1}\n', b'{"prompt": "a"}'):
        other = tmp_path / "other"
        other.write_bytes(content)
        with pytest.raises(RequestError, match="line 1"):
            answer_file(path, other, Echo())
        assert other.read_bytes() == content  # left as it was


def test_answers(tmp_path):
    path = write(tmp_path / "in.jsonl", {"prompt": "é", "id": "x"}, {"prompt": "b", "logprobs": 1})
    out = tmp_path / "deep" / "out.jsonl"

    def answer(prompts):
        one, two = prompts
        found = TokenLogprob(5, -0.5, ((5, -0.5), (6, -math.inf)))
        common = dict(token_ids=(5,), finish_reason="length", prompt_tokens=3, logprobs=(found,))
        yield Completion(id=two.id, text="é\n", cached_tokens=2, **common)
        yield Completion(id=one.id, text="", stop_text="#", **common)

    assert answer_file(path, out, answer, token_text="t{}".format) == Answered(kept=0, new=2)
    second, first = rows(out)
    digests = {second.pop("request_sha256"), first.pop("request_sha256")}
    assert len(digests) == 2
    assert second == {
        "id": "2",
        "text": "é\n",
        "finish_reason": "length",
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "cached_tokens": 2},
        "logprobs": [
            {
                "token_id": 5,
                "token": "t5",
                "logprob": -0.5,
                "top": [
                    {"token_id": 5, "token": "t5", "logprob": -0.5},
                    {"token_id": 6, "token": "t6", "logprob": None},
                ],
            }
        ],
    }
    assert first["stop_text"] == "#" and "logprobs" not in first


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_interrupted_run_asks_only_what_is_missing(tmp_path, error):
    path = write(tmp_path / "in.jsonl", *({"prompt": f"p{i}"} for i in range(5)))
    out = tmp_path / "out.jsonl"
    with pytest.raises(error):
        answer_file(path, out, Echo(stop_after=2, error=error))
    before = out.read_bytes()
    again = Echo()
    assert answer_file(path, out, again) == Answered(kept=2, new=3)
    assert again.asked == ["3", "4", "5"] and out.read_bytes().startswith(before)
    assert {row["id"]: row["text"] for row in rows(out)} == {str(i + 1): f"P{i}" for i in range(5)}
    nothing = Echo()
    assert answer_file(path, out, nothing) == Answered(kept=5, new=0) and not nothing.asked


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_cut_anywhere_is_completed(tmp_path_factory, data):
    """Whatever an interruption left of the file: the same answers in the end, each once."""
    folder = tmp_path_factory.mktemp("cut")
    path = write(folder / "in.jsonl", *({"prompt": f"é{i}\n"} for i in range(3)))
    out = folder / "out.jsonl"
    answer_file(path, out, Echo())
    whole = out.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    out.write_bytes(
        whole[:cut] + b"\0" * data.draw(st.sampled_from([0, 0, 3])) * (cut in ends(whole))
    )
    report = answer_file(path, out, Echo())
    assert out.read_bytes() == whole
    assert report.kept == whole[: cut + 1].count(b"\n") and report.kept + report.new == 3


def ends(whole):
    return {0} | {i + 1 for i, byte in enumerate(whole) if byte == ord("\n")}


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = write(tmp_path / "in.jsonl", {"prompt": "a"}, {"prompt": "b"})
    out = tmp_path / "out.jsonl"
    answer_file(path, out, Echo())
    content = out.read_bytes().replace(b'{"id": "1"', b'{"id": "1', 1)
    out.write_bytes(content)
    with pytest.raises(RequestError, match=r"out\.jsonl, line 1 is not JSON"):
        answer_file(path, out, Echo())
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    ("line", "how"),
    [
        ({"prompt": "other", "id": "a"}, {}),
        ({"prompt": "p", "id": "a", "seed": 1}, {}),
        ({"prompt": "p", "id": "a", "adapters": {"x": 1}}, {}),
        ({"prompt": "p", "id": "a"}, {"defaults": SamplingParams(temperature=0.5)}),
        ({"prompt": "p", "id": "a"}, {"settings": {"model": "another"}}),
    ],
)
def test_changed_prompts_under_an_old_id_are_refused(tmp_path, line, how):
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(path, {"prompt": "p", "id": "a"})
    answer_file(path, out, Echo(), settings={"model": "one"})
    before = out.read_bytes()
    write(path, {"prompt": "new"}, line)
    echo = Echo()
    with pytest.raises(RequestError, match=r"in\.jsonl, line 2: the prompt with id 'a'"):
        answer_file(path, out, echo, **{"settings": {"model": "one"}, **how})
    assert not echo.asked and out.read_bytes() == before
    # The place in the file does not count, and a default may as well stand in the line.
    write(
        path,
        {"prompt": "new", "id": "b"},
        {"id": "a", "max_tokens": 256, "top_p": 1, "prompt": "p"},
    )
    assert answer_file(path, out, echo, settings={"model": "one"}) == Answered(kept=1, new=1)
    assert echo.asked == ["b"]


def test_failures_are_reported_and_asked_again(tmp_path):
    path = write(tmp_path / "in.jsonl", *({"prompt": "p", "id": i} for i in "abc"))
    out = tmp_path / "out.jsonl"

    def failing(prompts):
        common = dict(text="", token_ids=(), prompt_tokens=1)
        yield Completion(id="b", finish_reason="error", error="too long", **common)
        yield Completion(id="a", finish_reason="cancelled", **common)

    expected = (("b", "too long"), ("a", "cancelled"), ("c", "no answer came"))
    assert answer_file(path, out, failing) == Answered(kept=0, new=0, failed=expected)
    assert rows(out) == []
    assert answer_file(path, out, Echo()) == Answered(kept=0, new=3)


def test_an_answer_that_nobody_asked_for(tmp_path):
    path = write(tmp_path / "in.jsonl", {"prompt": "p"})

    def twice(prompts):
        yield from Echo()(prompts)
        yield from Echo()(prompts)

    with pytest.raises(RuntimeError, match="'1', which is not open"):
        answer_file(path, tmp_path / "out.jsonl", twice)
    assert len(rows(tmp_path / "out.jsonl")) == 1
