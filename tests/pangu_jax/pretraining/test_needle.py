"""The needle test: insertion, scripted readers, scores against the plain decoder, choice, CLI."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_jax.config.resolve import ConfigError, resolve
from pangu_jax.models import Decoder, preset
from pangu_jax.parallel.sharding import unbox
from pangu_jax.pretraining import needle, needle_choice, needle_score
from pangu_jax.pretraining.config import NeedleConfig
from pangu_jax.pretraining.needle import NeedleError, Row
from pangu_jax.pretraining.needle_choice import Outcome, choose, default_bases, outcome_of
from pangu_jax.pretraining.needle_report import write_needle_report
from pangu_jax.pretraining.needle_score import Scores, answer_scores, score_rows
from pangu_jax.pretraining.sampling import sample_tokens

ROOT = pathlib.Path(__file__).resolve().parents[3]


def encode(text):
    """Bytes from 100 on, so that haystacks made of smaller ids hold no needle by chance."""
    return [100 + byte for byte in text.encode()]


def documents(total=20_000, seed=0):
    rng = np.random.default_rng(seed)
    return needle.documents_from_ids(
        [rng.integers(1, 100, size) for size in rng.multinomial(total, [1 / 7] * 7)], eod_id=0
    )


def subsequences(tokens, part):
    """Where `part` begins in `tokens`."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens, len(part))
    return np.flatnonzero((windows == np.asarray(part)).all(1)).tolist()


# Data


@given(
    rest=st.integers(0, 60),
    needles=st.lists(
        st.tuples(st.integers(1, 9), st.floats(0, 1, allow_nan=False)), min_size=1, max_size=5
    ),
)
def test_needles_stand_whole_at_their_depth(rest, needles):
    parts = [[1000 * (i + 1) + j for j in range(size)] for i, (size, _) in enumerate(needles)]
    depths = [depth for _, depth in needles]
    length = rest + sum(map(len, parts))
    haystack = np.arange(rest + 30)
    context, starts = needle.insert(haystack, parts, depths, length)
    assert len(context) == length and context.dtype == np.int32
    for part, start, depth in zip(parts, starts, depths, strict=True):
        np.testing.assert_array_equal(context[start : start + len(part)], part)
        before = int((context[:start] < 1000).sum())  # of the haystack
        assert abs(before - depth * rest) <= 0.5
    np.testing.assert_array_equal(context[context < 1000], haystack[:rest])


@pytest.mark.parametrize("together", [False, True])
def test_rows_have_their_needles_and_controls_none(together):
    settings = NeedleConfig(haystacks=3, depths=(0.0, 0.4, 1.0), choices=4, together=together)
    rows = needle.make_rows(documents(), encode, settings, 300)
    controls = [row for row in rows if row.control]
    filled = [row for row in rows if not row.control]
    assert len(controls) == 3 and len(filled) == (3 if together else 9)
    end = encode(needle.END)
    for row in rows:
        assert len(row.context) + max(map(len, row.questions)) <= 300
        assert len({tuple(value) for value in row.values}) == 4
        for question, right, start in zip(row.questions, row.right, row.starts, strict=True):
            found = subsequences(row.context, [*question, *row.values[right], *end])
            assert found == ([] if row.control else [start])
        if row.control:
            assert row.context.max() < 100
    if not together:
        assert sorted(row.depths[0] for row in controls) == [0.0, 0.4, 1.0]
    # The longest question and answer fill the length exactly.
    longest = max(len(encode(needle.QUESTION.format(key=key))) for key in needle.KEYS)
    assert {len(row.context) + longest + 5 for row in rows} == {300}
    again = needle.make_rows(documents(), encode, settings, 300)
    assert all((a.context == b.context).all() for a, b in zip(rows, again, strict=True))
    other = needle.make_rows(documents(), encode, dataclasses.replace(settings, seed=1), 300)
    assert any((a.context != b.context).any() for a, b in zip(rows, other, strict=True))


def test_a_control_repeats_the_text_of_its_haystack():
    rows = needle.make_rows(documents(), encode, NeedleConfig(haystacks=2, together=True), 400)
    for filled, control in zip(rows[::2], rows[1::2], strict=True):
        text = filled.context[filled.context < 100]
        np.testing.assert_array_equal(text, control.context[: len(text)])
        assert filled.values == control.values and filled.questions == control.questions


def test_stretches_deal_all_text_before_any_comes_again():
    text = needle.documents_from_ids([range(10 * i, 10 * i + 10) for i in range(6)])
    stream = needle.stretches(text, 7, np.random.default_rng(0))
    dealt = np.concatenate([next(stream) for _ in range(8)])
    assert len(np.unique(dealt)) == 56
    whole = needle.stretches(text, 60, np.random.default_rng(0))
    for _ in range(3):
        assert sorted(next(whole)) == list(range(60))


# Scores


def test_hand_built_logits():
    # Vocabulary of 3; answers of up to 2 tokens.
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]]))
    tokens = jnp.array([[[0, 1]], [[0, 2]], [[1, 1]], [[0, 2]]])
    lengths = jnp.array([[2], [2], [2], [1]])
    log_probs, greedy = answer_scores(jnp.broadcast_to(logits, (4, 1, 2, 3)), tokens, lengths)
    np.testing.assert_allclose(np.exp(log_probs[:, 0]), [0.4, 0.05, 0.2, 0.5], rtol=1e-6)
    assert greedy[:, 0].tolist() == [True, False, False, True]


@pytest.fixture(scope="module")
def model():
    config = preset("debug", vocab_size=300, norm_eps=1e-6, loss_chunk=16)
    params = jax.jit(lambda key: unbox(Decoder(config).init(key, jnp.zeros((1, 4), jnp.int32))))(
        jax.random.key(3)
    )["params"]
    # Larger weights, so that the answers depend on what was read.
    return config, jax.tree.map(lambda x: 4.0 * x if x.ndim > 2 else x, params)


def test_scores_are_those_of_the_whole_sequence(model):
    config, params = model
    rng = np.random.default_rng(0)

    def ids(count):
        return rng.integers(0, 300, count).tolist()

    rows = [
        Row(np.array(ids(30), np.int32), [ids(3), ids(5)], [ids(2), ids(3), ids(1)],
            np.arange(2), np.zeros(2), np.full(2, -1 if i == 1 else 4))
        for i in range(3)
    ]  # fmt: skip
    got = score_rows(config, params, rows, batch_rows=2, buckets=4)
    assert got.log_probs.shape == got.greedy.shape == (3, 2, 3)
    forward = jax.jit(lambda tokens: Decoder(config).apply({"params": params}, tokens))

    def log_softmax(tokens):
        padded = np.zeros((1, 40), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.asarray(jax.nn.log_softmax(forward(padded)))[0]

    for r, row in enumerate(rows):
        for a, question in enumerate(row.questions):
            for k, value in enumerate(row.values):
                before = [*row.context, *question]
                own = log_softmax([*before, *value])[len(before) - 1 :]
                want = sum(own[i][t] for i, t in enumerate(value))
                assert got.log_probs[r, a, k] == pytest.approx(want, abs=2e-4)
    own = log_softmax(rows[1].context)
    nll = -own[np.arange(29), rows[1].context[1:]]
    np.testing.assert_array_equal(got.counted, [[0] * 4, [8, 8, 8, 5], [0] * 4])
    want = [nll[:8].sum(), nll[8:16].sum(), nll[16:24].sum(), nll[24:].sum()]
    np.testing.assert_allclose(got.nll[1], want, rtol=1e-5)


def test_teacher_forced_argmax_is_greedy_decoding(model):
    config, params = model
    rng = np.random.default_rng(1)
    rows, said = [], []
    for _ in range(3):
        context, question = rng.integers(0, 300, 20).astype(np.int32), [7, 8, 9]
        prompt = [*context.tolist(), *question]
        answer = sample_tokens(config, params, prompt, max_tokens=4, eod_id=-1, temperature=0.0)
        # The greedy answer, and the same with one token changed at each place.
        values = [answer] + [
            [(t + 1) % 300 if i == j else t for j, t in enumerate(answer)] for i in range(4)
        ]
        said.append([value == answer for value in values])
        rows.append(Row(context, [question], values, np.zeros(1, int), np.zeros(1), np.zeros(1)))
    got = score_rows(config, params, rows, batch_rows=2)
    assert said == [[True] + [False] * 4] * 3
    assert got.greedy[:, 0].tolist() == said


# Readers that are known


def scripted(sight):
    """A reader that finds 'question value end' among the last `sight` share of the context."""

    def score(config, params, rows, *, batch_rows, buckets):
        log_probs = np.zeros((len(rows), len(rows[0].questions), len(rows[0].values)))
        rng = np.random.default_rng(0)
        for r, row in enumerate(rows):
            seen = row.context[round((1 - sight) * len(row.context)) :]
            for a, question in enumerate(row.questions):
                for k, value in enumerate(row.values):
                    found = subsequences(seen, [*question, *value])
                    log_probs[r, a, k] = 0.0 if found else -5 - rng.random()
        shape = len(rows), buckets
        controls = np.array([row.control for row in rows])[:, None]
        nll = (100.0 + rng.random(shape)) * controls * (1 + config.rope_base / 1e6)
        return Scores(log_probs, log_probs == 0, nll, np.full(shape, 50.0) * controls)

    return score


@pytest.mark.parametrize("together", [False, True])
def test_a_perfect_and_a_shortsighted_reader(monkeypatch, together, tmp_path):
    settings = NeedleConfig(
        haystacks=8, depths=(0.0, 0.3, 0.7, 1.0), choices=4, together=together, lengths=(400,),
        bases=(1e4, 2e4),
    )  # fmt: skip
    readers = {1e4: scripted(1.0), 2e4: scripted(0.5)}

    def score(config, *args, **kwargs):
        return readers[config.rope_base](config, *args, **kwargs)

    monkeypatch.setattr(needle_choice, "score_rows", score)
    choice = needle_choice.choose_rope_base(
        preset("debug"), {}, documents(), encode, settings, trained_length=200
    )
    far, near = choice.outcomes
    assert far.exact.all() and far.choice.all() and (far.margin >= 5).all()
    np.testing.assert_array_equal(near.exact, near.depths > 0.5)
    for outcome in choice.outcomes:
        assert not outcome.control_exact.any()
        # Without a needle the scripted reader guesses among four.
        assert outcome.control_choice.mean() < 0.7
    assert choice.base == 1e4 and choice.clear and "beyond noise" in choice.verdict

    path = write_needle_report(tmp_path, choice, settings, "scripted")
    record = json.loads((tmp_path / "needle.json").read_text())
    assert record["base"] == 1e4 and len(record["outcomes"][0]["exact"]) == 32
    text = path.read_text()
    assert "| 10000 | 32 of 32 [0.89, 1.00] |" in text and "| 20000 | 16 of 32 [0.34, 0.66]" in text
    assert (tmp_path / "needle.png").stat().st_size > 5000


def outcome(base, exact, nll, choice=None, controls=6):
    exact = np.asarray(exact, bool)
    rng = np.random.default_rng(9)
    spread = nll + 0.3 * rng.random((controls, 4))  # the same texts for every base
    spread += 0.01 * np.random.default_rng(int(base)).random((controls, 4))
    none = np.zeros(controls, bool)
    choice = exact if choice is None else np.asarray(choice, bool)
    return Outcome(
        base, 64, np.zeros(len(exact)), exact, choice,
        exact - 0.5, none, none, none - 0.5, spread * 10, np.full((controls, 4), 10.0),
    )  # fmt: skip


def test_the_needles_decide_before_perplexity():
    good, bad = outcome(1.0, [True] * 20, 3.0), outcome(2.0, [False] * 20, 2.0)
    base, clear, why = choose([bad, good])
    assert (base, clear) == (1.0, True) and "needle questions best" in why


def test_perplexity_decides_between_equals():
    a, b = outcome(1.0, [True] * 9 + [False], 3.0), outcome(2.0, [True] * 8 + [False] * 2, 2.0)
    bad = outcome(3.0, [False] * 10, 1.0)
    base, clear, why = choose([a, b])
    assert (base, clear) == (2.0, True) and "lowest perplexity" in why
    base, clear, why = choose([a, b, bad])
    assert (base, clear) == (2.0, True) and "rules out 3 " in why


def test_better_by_choice_is_not_beaten():
    # More exact answers within noise, far fewer right choices: both stay, perplexity decides.
    a = outcome(1.0, [True] * 2 + [False] * 28, 3.0, choice=[True] * 2 + [False] * 28)
    b = outcome(2.0, [False] * 29 + [True], 2.0, choice=[True] * 30)
    assert needle_choice.beats(b, a, 0.05) and not needle_choice.beats(a, b, 0.05)
    assert choose([a, b])[0] == 2.0
    c = outcome(2.0, [True] * 7 + [False] * 23, 3.0)
    none = outcome(1.0, [False] * 30, 2.0)
    assert needle_choice.beats(c, none, 0.05) and not needle_choice.beats(none, c, 0.05)
    assert not needle_choice.beats(c, none, 0.03)  # 2 / 2^7 = 0.0156


def test_noise_is_called_noise():
    a, b = outcome(1.0, [True, False] * 5, 2.0), outcome(2.0, [False, True] * 5, 2.0)
    base, clear, why = choose([a, b])
    assert not clear and why.startswith("No base differs beyond noise")
    assert base == min((a, b), key=Outcome.last_quarter_perplexity).base
    one = outcome(1.0, [True], 2.0, controls=1)
    assert not choose([one, outcome(2.0, [True], 4.0, controls=1)])[1]  # one text shows nothing
    assert choose([one])[1:] == (False, "Only one base, 1, was tried: nothing to choose.")


def test_outcome_and_interval():
    rows = [
        Row(np.zeros(4, np.int32), [[1]], [[1], [2]], np.array([1]), np.array([0.5]), np.array([s]))
        for s in (2, -1)
    ]
    log_probs = np.array([[[-3.0, -1.0]], [[-1.0, -1.0]]])
    scores = Scores(log_probs, log_probs > -2, np.array([[0, 0], [2, 4.0]]), np.ones((2, 2)))
    got = outcome_of(1e4, 8, rows, scores)
    assert got.exact.tolist() == [True] and got.choice.tolist() == [True]
    assert got.margin.tolist() == [2.0]
    assert got.control_choice.tolist() == [False]  # a tie is no right choice
    assert got.perplexity() == pytest.approx(np.exp([2.0, 4.0]))
    # Wilson's interval for 8 of 10, from its closed form.
    z, p, n = 1.959964, 0.8, 10
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    want = (np.array([-half, half]) + centre) / (1 + z * z / n)
    assert needle_choice.interval(8, 10) == pytest.approx(want, abs=1e-6)
    with pytest.raises(NeedleError, match="no finite numbers at length 8 with base 10000"):
        outcome_of(1e4, 8, rows, scores._replace(log_probs=log_probs * np.nan))


def test_default_bases_follow_the_report():
    assert default_bases(1e5, 8192, 32_768) == (1e5, 4e5, 1.6e6, 6.4e6)
    assert default_bases(1.6e6, 32_768, 131_072)[2] == 2.56e7
    assert default_bases(1e4, 512, 512) == (2.5e3, 1e4, 4e4)
    assert default_bases(1e4, 512, 1024) == (1e4, 4e4, 1.6e5)


def test_a_base_changes_the_scores(model):
    config, params = model
    choice = needle_choice.choose_rope_base(
        config, params, documents(3000), lambda text: [100 + b for b in text.encode()],
        NeedleConfig(lengths=(120,), depths=(0.5,), haystacks=2, bases=(1e2, 1e4), batch_rows=2),
        trained_length=64,
    )  # fmt: skip
    a, b = choice.outcomes
    assert (a.base, b.base) == (1e2, 1e4) and np.isfinite(a.margin).all()
    assert (np.abs(a.margin - b.margin) > 1e-4).any()
    np.testing.assert_array_equal(a.counted, b.counted)


# Mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (0.5, 1.2)}, r"--config.needle: depths=.*1.2.*\[0, 1\]"),
        ({"depths": ()}, "depths"),
        ({"bases": (1e4, 0.0)}, "bases=.*must be positive"),
        ({"lengths": (200_000,)}, "lengths has 200000.*max_length=131072"),
        ({"lengths": (0,)}, "lengths has 0"),
        ({"digits": 1, "choices": 10}, "choices=10 .*at most 9"),
        ({"together": True, "choices": 4}, "5 depths.*choices=4"),
        ({"buckets": 6}, "buckets=6"),
        ({"haystacks": 0}, "haystacks=0"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        resolve(NeedleConfig, changes, path="--config.needle")


def test_tests_that_cannot_be_made(model):
    config, params = model
    with pytest.raises(NeedleError, match="length 60 is too short.*at least"):
        needle.make_rows(documents(), encode, NeedleConfig(), 60)
    least = 2 * (len(encode(needle.QUESTION.format(key="Helsinki"))) + 5) + 3
    with pytest.raises(NeedleError, match=f"at least {least}"):
        needle.make_rows(documents(), encode, NeedleConfig(), least - 1)
    assert needle.make_rows(documents(), encode, NeedleConfig(), least)
    with pytest.raises(NeedleError, match="0 tokens in 0 documents"):
        needle.make_rows(needle.documents_from_ids([]), encode, NeedleConfig(), 400)
    with pytest.raises(NeedleError, match="50 tokens in .*shards.held_out"):
        needle.make_rows(documents(50), encode, NeedleConfig(), 400)
    with pytest.raises(NeedleError, match="depth .*1.5"):
        needle.insert(np.arange(9), [[1]], [1.5], 5)
    with pytest.raises(NeedleError, match="at most 36"):
        needle.make_rows(documents(), encode, NeedleConfig(choices=37), 400)

    def pick(settings, length):
        return needle_choice.choose_rope_base(
            config, params, documents(), encode, settings, trained_length=length
        )

    with pytest.raises(NeedleError, match="length 400 is above.*max_length=300"):
        pick(NeedleConfig(max_length=300), 100)
    rows = needle.make_rows(documents(), encode, NeedleConfig(haystacks=1), 200)
    small = dataclasses.replace(config, vocab_size=150)
    with pytest.raises(ValueError, match="ends at 149"):
        needle_score.score_rows(small, params, rows)


# The command line

RUN = """
import json, pathlib, sys
import numpy as np
from pangu_jax.config.resolve import to_dict
from pangu_jax.data.text import CorpusConfig, Mixture, ShardConfig, SourceConfig
from pangu_jax.data.tokenizer import BpeConfig
from pangu_jax.models import preset
from pangu_jax.pretraining import experiment
from pangu_jax.pretraining.config import PretrainConfig, ScheduleConfig, HeldOutConfig
from pangu_jax.training.config import TrainConfig
folder = pathlib.Path(sys.argv[1])
rng = np.random.default_rng(0)
words = 'the model reads a row of tokens and learns which one comes next'.split()
lines = [json.dumps({'text': ' '.join(rng.choice(words, 60))}) for _ in range(60)]
(folder / 'texts.jsonl').write_text('\\n'.join(lines))
config = PretrainConfig(
    model=preset('debug', vocab_size=300),
    corpus=CorpusConfig(
        sources=(SourceConfig(kind='jsonl', path=str(folder / 'texts.jsonl'), domain='english'),),
        bpe=BpeConfig(vocab_size=300), shards=ShardConfig(held_out=0.2), compare=False),
    corpus_folder=str(folder / 'corpus'),
    mixtures={'general': Mixture({'english': 1.0})},
    schedule=ScheduleConfig(tokens=600, seq_len=64, batch_rows=2),
    held_out=HeldOutConfig(rows=2, layer_statistics=False),
    train=TrainConfig(progress='none', best_metric='loss', best_mode='min'),
)
sys.exit(experiment.run('train', to_dict(config), folder / 'run', []))
"""


@pytest.mark.slow
def test_the_mode_on_a_tiny_run(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}

    def call(*command):
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True,
            text=True, timeout=500,
        )  # fmt: skip

    done = call("-c", RUN, str(tmp_path))
    assert done.returncode == 0, done.stderr
    launch = [str(ROOT / "launch.py"), "--mode=needle", f"--workdir={tmp_path / 'run'}"]
    quick = ["--config.needle.haystacks=2", "--config.needle.depths=(0.0,1.0)",
             "--config.needle.bases=(1e4,4e4)"]  # fmt: skip
    done = call(*launch, *quick, "--config.needle.lengths=(120,160)")
    assert done.returncode == 0, done.stderr
    report = tmp_path / "run" / "report"
    record = json.loads((report / "needle.json").read_text())
    assert record["target"] == 160 and record["base"] in (1e4, 4e4)
    assert [(o["length"], o["base"]) for o in record["outcomes"]] == [
        (120, 1e4), (120, 4e4), (160, 1e4), (160, 4e4)
    ]  # fmt: skip
    assert "## Length 160" in (report / "needle.md").read_text()
    assert (report / "needle.png").read_bytes()[:4] == b"\x89PNG"
    assert record["verdict"] in done.stdout
    done = call(*launch, "--config.needle.lengths=(20,)")
    assert done.returncode == 2 and "length 20 is too short" in done.stderr
    done = call(*launch, "--config.needle.depths=(2.0,)")
    assert done.returncode == 2 and "fractions in [0, 1]" in done.stderr
