"""Every way in which a task can go, with scripted models."""

import dataclasses
import json
import re

import pytest
from agent_loop_tools import FakeExecutor
from hypothesis import given
from hypothesis import strategies as st

from agents_jax.llm import CallError, Choice, ScriptedModel, ToolCall, user
from agents_jax.tools.agent.loop import REPEATED, Agent, run
from agents_jax.tools.agent.policy import Decision, Refinement, State
from agents_jax.tools.agent.settings import LoopSettings
from agents_jax.tools.agent.tasks import Task, read_task
from agents_jax.tools.agent.transcript import ENDS, from_json
from agents_jax.tools.calls import Call
from agents_jax.tools.definitions import ToolDefinition
from agents_jax.tools.execution import Observation

TASK = Task(id="t", messages=(user("What is 1 + 2?"),))
PROMPTED = LoopSettings(style="prompted", max_turns=4)


def go(model, executor, registry, **settings):
    policy, refiner = settings.pop("policy", None), settings.pop("refiner", None)
    task = settings.pop("task", TASK)
    settings = LoopSettings(**{"style": "prompted", "max_turns": 6} | settings)
    return run(
        task, model, executor, policy=policy, refiner=refiner, settings=settings,
        tools=registry.definitions,
    )  # fmt: skip


def test_calls_are_run_and_their_results_given_back(scripted, executor, registry):
    model = scripted("[add(a=1, b=2), add(a=3, b=4)]", "It is 3, and 7.")
    transcript = go(model, executor, registry)
    assert (transcript.end, transcript.answer) == ("answer", "It is 3, and 7.")
    assert transcript.calls == (Call("add", {"a": 1, "b": 2}), Call("add", {"a": 3, "b": 4}))
    assert [seen.text for seen in transcript.observations] == ["3", "7"]
    roles = [message["role"] for message in transcript.messages]
    assert roles == ["user", "assistant", "tool", "tool", "assistant"]
    # Plain roles for a model that knows no tools: the functions before, the results by the user.
    sent = model.asked[1].messages
    assert [message["role"] for message in sent] == ["system", "user", "assistant", "user"]
    assert '"name":"add"' in sent[0]["content"]
    assert sent[2]["content"] == "[add(a=1, b=2), add(a=3, b=4)]"
    assert sent[3]["content"] == "add returned: 3\nadd returned: 7"
    assert transcript.cost.model_calls == 2 and transcript.cost.completion_tokens > 5


def test_native_calls_go_back_with_their_ids(scripted, executor, registry, native):
    model = scripted(native(("add", '{"a": 1, "b": 2}'), ("add", '{"a": 0, "b": 1}')), "3")
    transcript = go(model, executor, registry, style="native")
    assert transcript.end == "answer"
    first, second = model.asked
    assert [tool["function"]["name"] for tool in first.tools] == list(registry)
    assert first.tool_choice == "auto"
    # Further arguments are refused, so that they are not offered either.
    assert all(
        tool["function"]["parameters"]["additionalProperties"] is False for tool in first.tools
    )
    assistant, *results = second.messages[1:]
    assert [call["id"] for call in assistant["tool_calls"]] == ["id0", "id1"]
    assert json.loads(assistant["tool_calls"][0]["function"]["arguments"]) == {"a": 1, "b": 2}
    assert [(r["tool_call_id"], r["content"]) for r in results] == [("id0", "3"), ("id1", "1")]


@pytest.mark.parametrize("ids", [("", ""), ("same", "same"), ("one", "")])
def test_native_calls_without_ids_of_their_own_get_some(scripted, fake, registry, ids):
    calls = tuple(ToolCall("add", f'{{"a": {i}, "b": 0}}', name) for i, name in enumerate(ids))
    model = scripted(Choice("", "tool_calls", calls), "done")
    assert go(model, fake, registry, style="native").end == "answer"
    assistant, *results = model.asked[1].messages[1:]
    made = [call["id"] for call in assistant["tool_calls"]]
    assert len(set(made)) == 2 and all(made)
    assert [result["tool_call_id"] for result in results] == made


def test_calls_written_as_text_in_the_native_style_are_sent_once(scripted, fake, registry):
    model = scripted("[add(a=1, b=2)]", "3")
    assert go(model, fake, registry, style="native").calls == (Call("add", {"a": 1, "b": 2}),)
    assistant = model.asked[1].messages[1]
    assert assistant["content"] is None and len(assistant["tool_calls"]) == 1


@pytest.mark.parametrize(
    ("written", "kind", "said"),
    [
        ("[nothing(a=1)]", "unknown_tool", "nothing"),
        ('[add(a="one", b=2)]', "bad_arguments", "a"),
        ("[add(a=1)]", "bad_arguments", "b"),
        ('[raises(text="it")]', "raised", "cannot do it"),
        ("[hangs()]", "timed_out", "hangs"),
    ],
)
def test_failures_of_tools_are_told_to_the_model(scripted, executor, registry, written, kind, said):
    model = scripted(written, "I could not.")
    transcript = go(model, executor, registry)
    (seen,) = transcript.observations
    assert (transcript.end, seen.ok, seen.error_kind) == ("answer", False, kind)
    assert said in model.asked[1].messages[-1]["content"]


def test_a_megabyte_is_cut(scripted, executor, registry):
    transcript = go(scripted("[megabyte()]", "long"), executor, registry)
    (seen,) = transcript.observations
    assert seen.truncated and len(seen.text) < 1100
    assert len(json.dumps(transcript.to_json())) < 10_000


@pytest.mark.parametrize("text", ["[add(a=1, b=", "<tool_call>{oops</tool_call>", "add(1, 2)"])
def test_unreadable_calls_are_told_of_once(scripted, fake, registry, text):
    model = scripted(text, "[add(a=1, b=2)]", "3")
    transcript = go(model, fake, registry)
    assert transcript.end == "answer"
    assert "could not be read" in transcript.turns[0].told
    assert transcript.turns[0].proposal.calls is None
    assert model.asked[1].messages[-1]["content"] == transcript.turns[0].told
    assert model.asked[1].messages[-2]["content"] == text

    transcript = go(scripted(text, text, "never asked"), fake, registry)
    assert transcript.end == "unparsable" and transcript.error
    assert go(scripted(text), fake, registry, max_unparsable=0).end == "unparsable"


def test_native_arguments_that_are_no_json_object(scripted, fake, registry, native):
    for arguments in ('{"a": 1', "[1]", '{"a": NaN}', '"x"'):
        model = scripted(native(("add", arguments)), "3")
        transcript = go(model, fake, registry, style="native")
        assert transcript.turns[0].proposal.calls is None
        assert transcript.end == "answer" and not fake.ran


def test_limits(scripted, fake, registry):
    def calls():
        yield from (f"[add(a={number}, b=0)]" for number in range(100))

    assert go(scripted(*calls()), fake, registry, max_turns=3).end == "turn_limit"
    transcript = go(scripted("[add(a=1, b=1), add(a=2, b=2)]"), fake, registry, max_calls=1)
    assert transcript.end == "call_limit" and len(transcript.calls) == 1
    fake.ran.clear()
    slow = scripted("[add(a=1, b=1)]", "late", delay=lambda r: 0.0 if len(r.messages) == 2 else 30)
    transcript = go(slow, fake, registry, time_limit_s=0.3)
    assert (transcript.end, transcript.answer) == ("time_limit", None)
    assert "time_limit_s=0.3" in transcript.error
    assert len(transcript.calls) == 1 and transcript.seconds < 10


def test_repeated_calls_end_the_task(scripted, fake, registry):
    model = scripted(*["[add(a=1, b=2)]"] * 10)
    transcript = go(model, fake, registry, max_repeats=2, max_turns=10)
    assert transcript.end == "repeated_calls" and len(transcript.calls) == 4
    assert model.asked[2].messages[-1]["content"].endswith(REPEATED)
    assert not model.asked[1].messages[-1]["content"].endswith(REPEATED)


def test_the_same_call_with_another_result_is_no_repeat(scripted, registry):
    class Counter:
        count = 0

        def run(self, call):
            self.count += 1
            return Observation(call, True, str(self.count))

    model = scripted(*["[add(a=1, b=2)]"] * 5, "done")
    assert go(model, Counter(), registry, max_repeats=0).end == "answer"


@pytest.mark.parametrize("kind", ["server", "auth", "timeout"])
def test_an_endpoint_that_dies_leaves_the_transcript(scripted, fake, registry, kind):
    model = scripted("[add(a=1, b=2)]", CallError(kind, "gone"))
    transcript = go(model, fake, registry)
    assert (transcript.end, transcript.failure) == ("model_failed", kind)
    assert "gone" in transcript.error and not transcript.finished
    assert [seen.text for seen in transcript.observations] == ["3"]


def test_a_model_with_a_bug_or_without_tools(scripted, fake, registry):
    def broken(request):
        raise ZeroDivisionError("oops")

    transcript = go(ScriptedModel(broken), fake, registry)
    assert transcript.end == "model_failed" and "ZeroDivisionError: oops" in transcript.error
    model = scripted("x", capabilities=["generate", "chat"])
    transcript = go(model, fake, registry, style="native")
    assert (transcript.end, transcript.failure) == ("model_failed", "unsupported")
    assert go(model, fake, registry).end == "answer"  # prompted needs a chat only


class Decides:
    name = "decides"

    def __init__(self, *calls):
        self.calls, self.states = list(calls), []

    def decide(self, state):
        self.states.append(state)
        call = self.calls.pop(0)
        if isinstance(call, Exception):
            raise call
        return call if not isinstance(call, bool | None) else Decision(call=call, score=0.25)


def test_a_required_call_can_be_held_to_the_tools(scripted, fake, registry):
    model = scripted("[add(a=1, b=2)]", "3")
    policy = Decides(True, None)
    transcript = go(model, fake, registry, policy=policy, constrained=True)
    assert (transcript.end, transcript.answer) == ("answer", "3")
    first, second = model.asked
    assert second.regex is None  # where no call is required, words are allowed
    assert re.fullmatch(first.regex, "[add(a=1, b=2)]")
    for text in ("It is 3.", "[sub(a=1, b=2)]", "[add(a=1)]", '[add(a=1, b="2")]'):
        assert not re.fullmatch(first.regex, text), text
    unable = scripted("x", capabilities=["generate", "chat"])
    transcript = go(unable, fake, registry, policy=Decides(True), constrained=True)
    assert (transcript.end, transcript.failure) == ("model_failed", "unsupported")
    with pytest.raises(ValueError, match="constrained=True is for style='prompted'"):
        LoopSettings(style="native", constrained=True)


def test_withheld_tools_make_a_final_answer(scripted, fake, registry):
    for style in ("native", "prompted"):
        model = scripted("[add(a=1, b=2)]")
        transcript = go(model, fake, registry, style=style, policy=Decides(False))
        assert (transcript.end, transcript.answer) == ("answer", "[add(a=1, b=2)]")
        assert not model.asked[0].tools
        assert [m["role"] for m in model.asked[0].messages] == ["user"]
    assert transcript.turns[0].decision.score == 0.25


def test_required_and_offered(scripted, fake, registry, native):
    policy = Decides(True, None)
    model = scripted(native(("add", '{"a": 1, "b": 2}')), "3")
    go(model, fake, registry, style="native", policy=policy)
    assert [request.tool_choice for request in model.asked] == ["required", "auto"]
    assert [(s.turn, s.num_calls) for s in policy.states] == [(0, 0), (1, 1)]
    assert {s.query for s in policy.states} == {"What is 1 + 2?"}
    model = scripted("[add(a=1, b=2)]", "3")
    go(model, fake, registry, policy=Decides(True, None))
    assert "must be calls" in model.asked[0].messages[0]["content"]
    assert "must be calls" not in model.asked[1].messages[0]["content"]


def test_the_query_stays_when_the_model_was_told_something(scripted, fake, registry):
    policy = Decides(None, None)
    go(scripted("add(1", "3"), fake, registry, policy=policy)
    assert policy.states[1].messages[-1]["role"] == "user"
    assert policy.states[1].query == "What is 1 + 2?"


@pytest.mark.parametrize("fault", [ValueError("bad"), "no decision"])
def test_a_policy_that_fails(scripted, fake, registry, fault):
    transcript = go(scripted("3"), fake, registry, policy=Decides(fault))
    assert transcript.end == "policy_failed" and not transcript.finished


class Refines:
    name = "refines"

    def __init__(self, work):
        self.work = work

    def refine(self, state, proposal, ask):
        return self.work(state, proposal, ask)


@pytest.mark.parametrize("style", ["native", "prompted"])
def test_a_refiner_asks_again_and_its_calls_are_made(scripted, fake, registry, native, style):
    def work(state, proposal, ask):
        step = ask([proposal.message, user("Check your call.")])
        return Refinement(proposal=step, steps=(step,), reason="one look")

    answers = ["[add(a=1, b=1)]", "[add(a=1, b=2)]", "3"]
    if style == "native":
        answers[:2] = [native(("add", f'{{"a": 1, "b": {b}}}')) for b in (1, 2)]
    model = scripted(*answers)
    transcript = go(model, fake, registry, style=style, refiner=Refines(work))
    assert transcript.calls == (Call("add", {"a": 1, "b": 2}),)
    assert transcript.turns[0].proposal.calls == (Call("add", {"a": 1, "b": 1}),)
    assert transcript.turns[0].refinement.reason == "one look"
    assert transcript.cost.model_calls == 3
    looked, last = model.asked[1].messages, model.asked[2].messages
    assert looked[-1]["content"] == "Check your call."
    if style == "native":  # no call is left open, as servers demand
        assert looked[-2] == {"role": "tool", "tool_call_id": "id0", "content": "Not run yet."}
    # What was refined away is not in the conversation that goes on.
    assert "Check your call." not in json.dumps(list(last))


def test_a_refiner_that_fails_keeps_what_it_asked(scripted, fake, registry):
    def dies(state, proposal, ask):
        step = ask([proposal.message, user("Check.")])
        ask([step.message, user("Check.")])

    model = scripted("[add(a=1, b=1)]", "[add(a=1, b=2)]", CallError("server", "gone"))
    transcript = go(model, fake, registry, refiner=Refines(dies))
    assert transcript.end == "model_failed" and not transcript.calls
    (step,) = transcript.turns[0].refinement.steps
    assert step.calls == (Call("add", {"a": 1, "b": 2}),)

    def bug(state, proposal, ask):
        raise KeyError("x")

    assert go(scripted("[add(a=1, b=1)]"), fake, registry, refiner=Refines(bug)).end == (
        "refiner_failed"
    )


def test_refinement_may_repair_or_become_an_answer(scripted, fake, registry):
    def again(state, proposal, ask):
        step = ask([proposal.message, user("Check.")])
        return Refinement(proposal=step, steps=(step,))

    model = scripted("[add(a=1", "[add(a=1, b=2)]", "3")
    assert go(model, fake, registry, refiner=Refines(again)).calls
    transcript = go(scripted("[add(a=1)]", "None needed."), fake, registry, refiner=Refines(again))
    assert (transcript.end, transcript.answer) == ("answer", "None needed.")
    # An answer in words is not shown to it.
    assert go(scripted("3"), fake, registry, refiner=Refines(again)).end == "answer"


def test_without_execution_the_first_calls_end_the_task(scripted, registry):
    transcript = go(scripted("[add(a=1, b=2)]"), None, registry, execute=False)
    assert transcript.end == "calls" and transcript.calls == (Call("add", {"a": 1, "b": 2}),)
    with pytest.raises(ValueError, match="executor"):
        go(scripted("x"), None, registry)


def test_only_tools_on_offer_are_run(scripted, fake, registry):
    task = read_task({"id": "t", "query": "x", "tools": [{"name": "other", "parameters": {}}]})
    transcript = go(scripted("[add(a=1, b=2)]", "no"), fake, registry, task=task)
    assert transcript.offered == ("other",)
    assert transcript.observations[0].error_kind == "unknown_tool" and not fake.ran


def test_a_schema_that_speaks_of_further_arguments_stays(scripted, fake):
    free = {"type": "object", "properties": {}, "additionalProperties": True}
    parts = {"anyOf": [{"type": "object", "properties": {"a": {}}}], "type": "object"}
    tools = [ToolDefinition("free", "", free), ToolDefinition("parts", "", parts)]
    model = scripted("x")
    Agent(model, fake, tools=tools).run(TASK)
    sent = [tool["function"]["parameters"] for tool in model.asked[0].tools]
    assert sent[0]["additionalProperties"] is True
    assert "additionalProperties" not in sent[1]


def test_a_thousand_tools_are_cut_to_those_near_the_query(scripted, fake):
    tools = [ToolDefinition(f"tool_{i}", f"does thing number {i}") for i in range(1000)]
    tools[777] = ToolDefinition("weather_report", "The weather in a city.")
    model = scripted("Sunny.")
    settings = LoopSettings(max_candidates=8, style="native")
    agent = Agent(model, fake, settings=settings, tools=tools)
    task = Task(id="t", messages=(user("How is the weather in Oslo?"),))
    transcript = agent.run(task)
    assert len(model.asked[0].tools) == len(transcript.offered) == 8
    assert transcript.offered[0] == "weather_report"


def test_no_tools_at_all(scripted, fake):
    model = scripted("[add(a=1, b=2)]")
    transcript = Agent(model, fake, settings=PROMPTED).run(TASK)
    assert (transcript.end, transcript.offered) == ("answer", ())


def test_an_executor_that_fails(scripted, registry):
    class Broken:
        def run(self, call):
            raise OSError("disk")

    transcript = go(scripted("[add(a=1, b=2)]"), Broken(), registry)
    assert transcript.end == "executor_failed" and "disk" in transcript.error


def test_an_interrupt_keeps_the_transcript(scripted, registry):
    class Interrupted:
        def run(self, call):
            raise KeyboardInterrupt

    transcript = go(scripted("[add(a=1, b=2)]"), Interrupted(), registry)
    assert transcript.end == "interrupted" and not transcript.finished
    assert transcript.turns[0].proposal.calls


def test_system_text_and_earlier_messages(scripted, fake, registry):
    task = Task(id="t", messages=(user("Hi"), {"role": "assistant", "content": "Ho"}, user("1+2?")))
    model = scripted("3")
    transcript = go(model, fake, registry, task=task, system="Be short.")
    assert transcript.num_given == 4
    assert model.asked[0].messages[0]["content"].endswith("Be short.")
    task = Task(id="t", messages=({"role": "system", "content": "Be kind."}, user("1+2?")))
    model = scripted("3")
    go(model, fake, registry, task=task, system="Be short.", style="native")
    assert [m["content"] for m in model.asked[0].messages] == ["Be short.\n\nBe kind.", "1+2?"]


def test_a_refiner_whose_proposal_does_not_fit_together(scripted, fake, registry):
    def bad(state, proposal, ask):
        return Refinement(proposal=dataclasses.replace(proposal, call_ids=("a", "b")))

    transcript = go(scripted("[add(a=1, b=1)]"), fake, registry, refiner=Refines(bad))
    assert transcript.end == "refiner_failed" and "call_ids" in transcript.error


# Texts near the forms of calls, so that all branches of the reading are met.
_TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(
            ["[", "]", "add(", "a=1", "b=2", ", ", ")", "<tool_call>", "{", "}", '"name": "add"',
             "{(1,): 2}", "\ud800", "\x00", "1e999", "raises(text='x')", "```", "[TOOL_CALLS]",
             "[]"]
        ),
        max_size=8,
    ).map("".join),
)  # fmt: skip
_CALLS = st.builds(
    ToolCall, st.sampled_from(["add", "raises", "", "\ud800"]), _TEXTS, st.sampled_from(["", "i"])
)
_CHOICES = st.builds(
    Choice, _TEXTS, st.sampled_from(["stop", "length"]), st.lists(_CALLS, max_size=2).map(tuple)
)


@given(answers=st.lists(_CHOICES, max_size=4), style=st.sampled_from(["native", "prompted"]))
def test_any_output_leads_to_a_finished_transcript(registry, answers, style):
    model = ScriptedModel([*answers, *["done"] * 6])
    transcript = go(model, FakeExecutor(), registry, style=style)
    assert transcript.end in ENDS
    record = json.loads(json.dumps(transcript.to_json(), allow_nan=False))
    assert from_json(record).to_json() == transcript.to_json()


def test_state_takes_the_last_question_as_its_query():
    assert State(task_id="t", messages=(user("a"), user("b")), tools=()).query == "b"
    assert State(task_id="t", messages=(), tools=()).query == ""
