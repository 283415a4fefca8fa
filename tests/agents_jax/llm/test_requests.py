"""Requests: what their hash depends on, and what they refuse."""

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_jax.llm import GenerateRequest, HiddenStatesRequest, InvalidRequest, ScoreRequest, user
from agents_jax.llm.hashing import canonical, digest, request_key, sample_seed

IDENTITY = {"kind": "endpoint", "model": "m"}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)  # fmt: skip


def key(request):
    return request_key(IDENTITY, request.content())


def shuffled(value, rng):
    if isinstance(value, dict):
        items = [(k, shuffled(v, rng)) for k, v in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(v, rng) for v in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(max_size=5), json_values), st.randoms())
def test_hash_does_not_depend_on_the_order_of_keys(extra, rng):
    one = GenerateRequest(messages=[user("x")], extra=extra, response_schema=extra)
    two = GenerateRequest(
        messages=[{"content": "x", "role": "user"}],
        extra=shuffled(extra, rng),
        response_schema=shuffled(extra, rng),
    )
    assert key(one) == key(two)
    assert one == two and hash(one) == hash(two)


@given(json_values, json_values)
def test_hash_parts_what_differs(one, two):
    assert (digest(one) == digest(two)) == (canonical(one) == canonical(two))
    first = GenerateRequest(prompt="x", extra={"a": one})
    second = GenerateRequest(prompt="x", extra={"a": two})
    assert (key(first) == key(second)) == (canonical(one) == canonical(two))


@given(st.dictionaries(st.text(max_size=5), json_values), st.text(max_size=9))
def test_hash_does_not_depend_on_tag_metadata_and_number_of_samples(metadata, tag):
    plain = GenerateRequest(prompt="x", temperature=1.0)
    marked = dataclasses.replace(plain, tag=tag, metadata=metadata, n=3)
    assert key(plain) == key(marked)
    assert plain == marked


CHANGES = {
    "messages": ({"role": "user", "content": "y"},),
    "prompt": "y",
    "sample": 1,
    "max_tokens": None,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "stop": ("\n",),
    "seed": 0,
    "logprobs": 0,
    "tools": ({"type": "function"},),
    "tool_choice": "none",
    "response_schema": {},
    "regex": "a",
    "adapters": (("a", 1.0),),
    "extra": {"a": None},
}


def test_hash_depends_on_every_field_that_changes_the_answer():
    base = GenerateRequest(messages=[user("x")])
    fields = {field.name for field in dataclasses.fields(base)}
    assert set(CHANGES) == fields - {"tag", "metadata", "n"}  # a new field is decided on here
    keys = {key(base)}
    for name, value in CHANGES.items():
        other = {"messages": None} if name == "prompt" else {}
        keys.add(key(dataclasses.replace(base, **{name: value}, **other)))
    assert len(keys) == len(CHANGES) + 1
    assert len({key(ScoreRequest(prompt="x", continuations=c)) for c in (["a"], ["a", "b"])}) == 2
    variants = [
        HiddenStatesRequest(prompt="x", layers=(1,)),
        HiddenStatesRequest(prompt="x", layers=(2,)),
        HiddenStatesRequest(prompt="x", layers=(2,), positions=(0,)),
        HiddenStatesRequest(prompt="x", layers=(2,), continuation="y"),
        HiddenStatesRequest(prompt="x", layers=(2,), continuation="y", positions="continuation"),
    ]
    assert len({key(request) for request in variants}) == len(variants)


def test_hash_depends_on_the_model():
    content = GenerateRequest(prompt="x").content()
    assert request_key({"model": "a"}, content) != request_key({"model": "b"}, content)


def test_hash_is_the_same_in_another_process_and_pinned():
    code = (
        "from agents_jax.llm import GenerateRequest\n"
        "from agents_jax.llm.hashing import request_key\n"
        "r = GenerateRequest.ask('hallo ü', temperature=1, seed=3)\n"
        "print(request_key({'kind': 'endpoint', 'model': 'm'}, r.content()))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = key(GenerateRequest.ask("hallo ü", temperature=1.0, seed=3))
    assert there.stdout.strip() == here
    # Recordings live for long: this number must not change.
    assert here == "233919104d48c67b4f35022bb45105fa2d8fcd715b2a1fc134cb203c037e3bf9"


def test_a_request_keeps_its_own_copy():
    message = {"role": "user", "content": "x"}
    request = GenerateRequest(messages=[message])
    before = key(request)
    message["content"] = "y"
    assert key(request) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.temperature = 1.0


@given(st.integers(0, 2**31 - 1), st.integers(0, 50))
def test_seeds_of_samples(seed, sample):
    assert sample_seed(seed, 0) == seed
    assert 0 <= sample_seed(seed, sample) < 2**31


def test_seeds_of_neighbours_do_not_meet():
    seeds = [sample_seed(seed, sample) for seed in range(20) for sample in range(20)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({}, "messages or a prompt"),
        ({"prompt": "x", "messages": [user("x")]}, "not both"),
        ({"messages": []}, "empty"),
        ({"messages": "hello"}, "sequence"),
        ({"messages": [{"content": "x"}]}, "no role"),
        ({"messages": [{"role": "user", "content": {1, 2}}]}, "set"),
        ({"prompt": "x", "temperature": -1}, "temperature=-1"),
        ({"prompt": "x", "temperature": float("nan")}, "temperature=nan"),
        ({"prompt": "x", "top_p": 0}, "top_p=0"),
        ({"prompt": "x", "n": 0}, "n=0"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens=0"),
        ({"prompt": "x", "seed": True}, "seed=True"),
        ({"prompt": "x", "stop": ("",)}, "stop"),
        ({"prompt": "x", "regex": "a", "response_schema": {}}, "exclude"),
        ({"prompt": "x", "tools": [{}]}, "tools need messages"),
        ({"prompt": "x", "adapters": [("a", 1), ("a", 2)]}, "twice"),
        ({"prompt": "x", "extra": {"a": float("inf")}}, "finite"),
    ],
)
def test_what_is_refused(arguments, words):
    with pytest.raises(InvalidRequest, match=words):
        GenerateRequest(**arguments)


def test_what_scoring_and_hidden_states_refuse():
    for arguments in ({"continuations": ()}, {"continuations": "Yes"}, {"continuations": ("",)}):
        with pytest.raises(InvalidRequest, match="continuations"):
            ScoreRequest(prompt="x", **arguments)
    for arguments in (
        {"positions": "last"}, {"positions": "continuation"}, {"layers": ()}, {"positions": ()},
    ):  # fmt: skip
        with pytest.raises(InvalidRequest):
            HiddenStatesRequest(prompt="x", **arguments)


def test_needs():
    request = GenerateRequest.ask("x", seed=1, logprobs=2, top_k=3, regex="a", adapters={"a": 1})
    assert request.needs() == {
        "generate", "chat", "seed", "logprobs", "top_k", "regex", "adapters",
    }  # fmt: skip
    assert GenerateRequest(prompt="x").needs() == {"generate", "prompt"}
    assert ScoreRequest(prompt="x", continuations=("a",)).needs() == {"score", "prompt"}
