"""Scores from endpoints that echo prompts, that echo in their own ways, and that do not."""

import json
import math
import re

import pytest

from agents_jax.llm import (
    BatchError,
    EndpointConfig,
    EndpointModel,
    MissingCapability,
    RetryPolicy,
    ScoreRequest,
    user,
)


def words(text):
    """A toy tokenizer: a word with the space before it is a token, as in byte-level BPE."""
    return re.findall(r" ?[^ ]+| ", text)


def value(tokens, index):
    """Log-probability of a token: some number that depends on all before it."""
    return -0.01 * (sum(map(ord, "".join(tokens[:index]))) % 97) - 0.1 * len(tokens[index])


class Echo:
    """An endpoint that echoes.

    bos: a token before the text. least: fewest new tokens that it accepts. split: tokens with
    letters outside of ASCII become two, which do not add up to the text.
    """

    def __init__(self, http, *, bos=None, least=0, split=False, ignores=False, chat_top=None):
        self.http, self.bos, self.least, self.split = http, bos, least, split
        self.ignores, self.chat_top = ignores, chat_top

    def tokens(self, text):
        found = [self.bos] if self.bos else []
        for word in words(text):
            if self.split and not word.isascii():
                found += ["\ufffd", "\ufffd"]
            else:
                found.append(word)
        return found

    def __call__(self, request):
        body = request["body"]
        if request["path"].endswith("/chat/completions"):
            return self.top(body, chat=True)
        if not body.get("echo") or self.ignores:
            return self.top(body, chat=False)
        if body["max_tokens"] < self.least:
            return self.http.reply('{"error": "max_tokens must be at least 1"}', 400)
        tokens = self.tokens(body["prompt"]) + [" new"] * body["max_tokens"]
        values = [None] + [value(tokens, i) for i in range(1, len(tokens))]
        logprobs = {"tokens": tokens, "token_logprobs": values}
        return self.answer({"text": "".join(tokens), "logprobs": logprobs})

    def top(self, body, chat):
        if self.chat_top is None:
            choice = {"message": {"content": "x"}} if chat else {"text": "x"}
            return self.answer(choice)
        best = max(self.chat_top, key=self.chat_top.get)
        if not chat:
            found = {
                "tokens": [best],
                "token_logprobs": [self.chat_top[best]],
                "top_logprobs": [self.chat_top],
            }
            return self.answer({"text": best, "logprobs": found})
        top = [{"token": t, "logprob": v} for t, v in self.chat_top.items()]
        content = [{"token": best, "logprob": self.chat_top[best], "top_logprobs": top}]
        return self.answer({"message": {"content": best}, "logprobs": {"content": content}})

    def answer(self, choice):
        usage = {"prompt_tokens": 5, "completion_tokens": 0}
        return self.http.reply(
            json.dumps({"choices": [choice | {"finish_reason": "length"}], "usage": usage})
        )


@pytest.fixture
def scorer(server, http):
    opened = []

    def make(settings=None, **behaviour):
        server.respond = Echo(http, **behaviour)
        config = EndpointConfig(
            base_url=server.url,
            model="m",
            retry=RetryPolicy(max_attempts=1),
            **(settings or {}),
        )
        opened.append(EndpointModel(config))
        return opened[-1]

    yield make
    for model in opened:
        model.close()


PROMPT = "Is water wet? Answer:"
CHOICES = (" Yes", " No", " Yes it is")


@pytest.mark.parametrize(
    "behaviour",
    [
        {}, {"bos": "<s>"}, {"least": 1}, {"bos": "<s>", "least": 1}, {"split": True},
        {"bos": "<s>", "least": 1, "split": True},
    ],
)  # fmt: skip
def test_echoed_prompts_give_the_sum_over_the_continuation(server, scorer, http, behaviour):
    model = scorer(**behaviour)
    prompt = "Ist Wasser naß? Antwort:" if behaviour.get("split") else PROMPT
    (scores,) = model.score([ScoreRequest(prompt=prompt, continuations=CHOICES)])
    assert scores.method == "echo"
    echo = Echo(http, **behaviour)
    for score, text in zip(scores.continuations, CHOICES, strict=True):
        tokens = echo.tokens(prompt + text)
        start = len(echo.tokens(prompt))
        assert score.tokens == tuple(tokens[start:])
        expected = [value(tokens, i) for i in range(start, len(tokens))]
        assert score.token_logprobs == pytest.approx(expected)
        assert score.logprob == pytest.approx(sum(expected))
    # What the endpoint can do was found out once.
    asked = len(server.requests)
    model.score([ScoreRequest(prompt=prompt, continuations=(" Yes",))])
    assert len(server.requests) - asked == (2 if behaviour.get("split") else 1)


def test_usage_of_all_calls_is_counted(server, scorer):
    (scores,) = scorer().score([ScoreRequest(prompt=PROMPT, continuations=CHOICES)])
    assert scores.usage.prompt_tokens == 5 * len(server.requests) == 20
    assert len(scores.attempts) == 4


def test_a_continuation_that_joins_the_prompts_last_token_is_refused(scorer):
    model = scorer()
    with pytest.raises(BatchError, match="does not begin at a token.*space"):
        model.score([ScoreRequest(prompt="Answer: ", continuations=("Yes",))])
    with pytest.raises(BatchError, match="does not begin at a token"):
        model.score([ScoreRequest(prompt="Ans", continuations=("wer",))])
    with pytest.raises(BatchError, match="prompt is empty"):
        model.score([ScoreRequest(prompt="", continuations=("Yes",))])


TOP = {"Yes": -0.2, "No": -1.8, "Maybe": -4.0}


def test_choices_of_one_token_where_prompts_are_not_echoed(server, scorer):
    model = scorer(ignores=True, chat_top=TOP)
    request = ScoreRequest(prompt="x", continuations=("No", "Yes"))
    (scores,) = model.score([request])
    assert scores.method == "top_logprobs" and scores.logprobs == (-1.8, -0.2)
    probes = len(server.requests) - 1
    assert probes == 2  # with and without a new token
    model.score([request])
    assert len(server.requests) == probes + 2


def test_choices_after_a_chat(server, scorer):
    model = scorer(chat_top=TOP)
    request = ScoreRequest(messages=[user("wet?")], continuations=("Yes", "No"))
    (scores,) = model.score([request])
    assert scores.logprobs == (-0.2, -1.8) and scores.best == 0
    assert scores.probabilities()[0] == pytest.approx(1 / (1 + math.exp(-1.6)))
    (request,) = server.requests  # no probe: a chat cannot be echoed
    assert request["body"]["top_logprobs"] == 20 and request["body"]["max_tokens"] == 1


def test_choices_that_are_not_told(scorer):
    request = ScoreRequest(messages=[user("wet?")], continuations=("Yes", "Never"))
    with pytest.raises(BatchError, match="'Never' is not among the 3 likeliest"):
        scorer(chat_top=TOP).score([request])
    (scores,) = scorer({"score_bound": True}, chat_top=TOP).score([request])
    assert [s.bound for s in scores.continuations] == [False, True]
    assert scores.logprobs == (-0.2, -4.0)
    longer = ScoreRequest(messages=[user("wet?")], continuations=("Yes, it is",))
    with pytest.raises(BatchError, match="'Yes' is, so it may be several tokens"):
        scorer({"score_bound": True}, chat_top=TOP).score([longer])


def test_endpoints_that_cannot_score(server, http, scorer):
    request = ScoreRequest(prompt="x", continuations=("Yes",))
    chat = ScoreRequest(messages=[user("x")], continuations=("Yes",))
    with pytest.raises(MissingCapability, match="'m' lacks: score.*ignores echo.*local"):
        scorer(ignores=True).score([request])
    with pytest.raises(MissingCapability, match="score"):
        scorer().score([chat])
    with pytest.raises(MissingCapability, match="render it first"):
        scorer({"scoring": "echo"}).score([chat])
    with pytest.raises(MissingCapability, match="ignores echo"):
        scorer({"scoring": "echo"}, ignores=True).score([request])
    model = scorer()
    server.respond = [http.reply('{"detail": "Not Found"}', 404)]
    with pytest.raises(BatchError, match="404"):  # neither way is there: the address is wrong
        model.score([request])


def test_a_passing_failure_does_not_decide_what_an_endpoint_can_do(server, http, scorer):
    model = scorer()
    echo = server.respond
    server.respond = [http.reply("{}", 503)]
    request = ScoreRequest(prompt=PROMPT, continuations=(" Yes",))
    assert model.score([request], on_error="return")[0].error.kind == "server"
    server.respond = echo
    assert model.score([request])[0].method == "echo"
