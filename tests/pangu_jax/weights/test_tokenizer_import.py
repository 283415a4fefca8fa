"""Tokenizers: ids of llama.cpp and SentencePiece, files of Hugging Face, chat templates."""

import json
import struct
import unicodedata

import pytest
import weight_files as files
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from pangu_jax.weights import (
    LoadedTokenizer,
    SpecialTokens,
    WeightsError,
    open_gguf,
    render_chat,
    tokenizer_from_gguf,
    tokenizer_from_hf,
)

PEER = json.loads((files.FIXTURES / "tokenizers.json").read_text())
TEXTS = PEER["texts"]


def byte_level(writer, pre="smollm", **extra):
    own = PEER["gpt2"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(own["tokens"])
    writer.add_token_types(own["token_type"])
    writer.add_token_merges(own["merges"])
    for name, value in extra.items():
        getattr(writer, f"add_{name}")(value)


def plain_texts(writer):
    """A vocabulary for models whose probabilities llama.cpp is asked for: it gives none where the
    likeliest token ends the text (it knows such tokens by their usual texts) or is half a
    character."""
    own = PEER["gpt2"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    texts = [t if t.isascii() and t.isalnum() or t == "Ċ" else "" for t in own["tokens"]]
    writer.add_token_list([text or f"[{i}]" for i, text in enumerate(texts)])
    writer.add_token_merges(own["merges"])
    writer.add_eos_token_id(1)


def sentence_piece(writer):
    own = PEER["llama"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(own["tokens"])
    writer.add_token_scores(own["scores"])
    writer.add_token_types(own["token_type"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def load(path, edit):
    files.write_gguf(path, files.SMALL, {}, edit=edit)
    return tokenizer_from_gguf(open_gguf(path).metadata)


def plain_ids(loaded, text):
    return loaded.tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("pre", sorted(PEER["gpt2"]["ids"]))
@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_byte_level_ids_are_those_of_llama_cpp(tmp_path, pre, number):
    loaded = load(tmp_path / "t.gguf", lambda w: byte_level(w, pre))
    ids, theirs = plain_ids(loaded, TEXTS[number]), PEER["gpt2"]["ids"][pre][number]
    composed = unicodedata.normalize("NFC", TEXTS[number])
    if pre == "qwen2" and composed != TEXTS[number]:
        # Qwen2's own tokenizer composes characters first; llama.cpp leaves that step out.
        assert ids == plain_ids(loaded, composed) != theirs
    else:
        assert ids == theirs


@pytest.mark.parametrize("pre", sorted(PEER["gpt2"]["bos"]))
def test_without_the_key_the_pre_tokenizer_says_whether_bos_comes_first(tmp_path, pre):
    loaded = load(tmp_path / "t.gguf", lambda w: byte_level(w, pre, bos_token_id=1))
    assert loaded.special.add_bos == PEER["gpt2"]["bos"][pre] == (pre == "llama-bpe")
    assert (loaded.tokenizer.encode("a").ids[0] == 1) == loaded.special.add_bos


def test_other_names_of_pre_tokenizers(tmp_path):
    def unnamed(writer):
        byte_level(writer)
        del writer.kv_data[0]["tokenizer.ggml.pre"]

    ids = PEER["gpt2"]["ids"]
    for edit, like in ((lambda w: byte_level(w, "llama3"), "llama-bpe"), (unnamed, "default")):
        loaded = load(tmp_path / "t.gguf", edit)
        assert [plain_ids(loaded, text) for text in TEXTS] == ids[like]


def test_fixture_tells_the_pre_tokenizers_apart():
    ids = [json.dumps(per) for per in PEER["gpt2"]["ids"].values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_sentence_piece_ids(tmp_path, number):
    loaded, own = load(tmp_path / "t.gguf", sentence_piece), PEER["llama"]
    assert plain_ids(loaded, TEXTS[number]) == own["ids"][number]
    if "</s>" not in TEXTS[number]:  # SentencePiece itself knows no special tokens in texts
        assert own["ids"][number] == own["sentencepiece"][number]
    assert loaded.tokenizer.encode(TEXTS[number]).ids == own["ids_with_special"][number]
    bare = load(tmp_path / "b.gguf", lambda w: (sentence_piece(w), w.add_add_space_prefix(False)))
    assert plain_ids(bare, TEXTS[number]) == own["ids_without_prefix"][number]


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_text_comes_back(tmp_path, kind):
    edit = sentence_piece if kind == "pieces" else (lambda w: byte_level(w, "smollm"))
    loaded = load(tmp_path / "t.gguf", edit)
    for text in TEXTS:
        if kind == "pieces" and "</s>" in text:
            continue  # a space is put after every special token, and stays
        back = loaded.tokenizer.decode(plain_ids(loaded, text), skip_special_tokens=False)
        assert back == text


def test_special_tokens_and_bos(tmp_path):
    loaded = load(
        tmp_path / "t.gguf",
        lambda w: byte_level(w, bos_token_id=1, eos_token_id=2, pad_token_id=0, add_bos_token=True),
    )
    assert loaded.special == SpecialTokens(bos=1, eos=2, pad=0, add_bos=True)
    assert loaded.tokenizer.encode("a").ids == [1, *plain_ids(loaded, "a")]
    assert plain_ids(loaded, "<|im_end|>") == [2]
    loaded.tokenizer.encode_special_tokens = True
    assert len(plain_ids(loaded, "<|im_end|>")) > 1
    pieces = load(tmp_path / "p.gguf", sentence_piece)
    assert pieces.special.add_bos and pieces.tokenizer.encode("a").ids[0] == 1


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda w: None, "carries no tokenizer"),
        (lambda w: byte_level(w, "deepseek-r1-qwen"), "pre='deepseek-r1-qwen' is unknown; read"),
        (
            lambda w: (w.add_tokenizer_model("bert"), w.add_token_list(["a"])),
            "model='bert' is unknown",
        ),
        (lambda w: (w.add_tokenizer_model("gpt2"), w.add_token_list(["a"])), "carries no merges"),
        (lambda w: (w.add_tokenizer_model("llama"), w.add_token_list(["a"])), "carries no scores"),
    ],
)
def test_what_is_not_read(tmp_path, edit, message):
    with pytest.raises(WeightsError, match=message):
        load(tmp_path / "t.gguf", edit)


def hf_folder(path, settings=None, template=None):
    tokenizer = Tokenizer(models.WordLevel({"[B]": 0, "[E]": 1, "a": 2, "?": 3}, unk_token="?"))
    tokenizer.add_special_tokens(["[B]", "[E]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[B] $A", special_tokens=[("[B]", 0)]
    )
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    if settings is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return path


def test_hugging_face_folder(tmp_path):
    settings = {
        "bos_token": "[B]",
        "eos_token": {"content": "[E]", "special": True},
        "pad_token": None,
        "chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}],
    }
    loaded = tokenizer_from_hf(hf_folder(tmp_path / "m", settings))
    assert loaded.special == SpecialTokens(bos=0, eos=1, add_bos=True, chat_template="d")
    assert loaded.tokenizer.encode("a").ids == [0, 2]
    beside = tokenizer_from_hf(hf_folder(tmp_path / "n", settings, template="file"))
    assert beside.special.chat_template == "file"
    assert tokenizer_from_hf(hf_folder(tmp_path / "o")).special == SpecialTokens()


def protocol_buffer(*fields):
    """(number, value): int, float, bool, text or bytes, in the wire format."""
    out = b""
    for number, value in fields:
        if isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        elif isinstance(value, int):
            out += varint(number << 3) + varint(int(value))
        else:
            value = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def varint(value):
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def sentencepiece_folder(path, *, model_type=2, collapse=False, settings=None):
    own = PEER["llama"]
    pieces = zip(own["tokens"], own["scores"], own["token_type"], strict=True)
    data = protocol_buffer(
        *((1, protocol_buffer((1, text), (2, score), (3, kind))) for text, score, kind in pieces),
        (2, protocol_buffer((3, model_type), (35, True), (40, 0))),
        (3, protocol_buffer((1, "identity"), (3, True), (4, collapse))),
    )
    path.mkdir()
    (path / "tokenizer.model").write_bytes(data)
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | (settings or {})
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def test_tokenizer_model_alone(tmp_path):
    """As openPangu's directories have it: SentencePiece's file, no tokenizer.json."""
    own, count = PEER["llama"], len(PEER["llama"]["tokens"])
    added = {"added_tokens_decoder": {str(count): {"content": "[unused10]", "special": True}}}
    loaded = tokenizer_from_hf(sentencepiece_folder(tmp_path / "a", settings=added))
    assert loaded.special == SpecialTokens(bos=1, eos=2, unk=0, add_bos=True)
    for text, ids in zip(TEXTS, own["ids"], strict=True):
        assert plain_ids(loaded, text) == ids
        assert loaded.tokenizer.encode(text).ids == [1, *ids]
    assert plain_ids(loaded, "a[unused10]")[-1] == count
    bare = {"add_bos_token": False, "add_prefix_space": False}
    loaded = tokenizer_from_hf(sentencepiece_folder(tmp_path / "b", settings=bare))
    assert not loaded.special.add_bos
    for text, ids in zip(TEXTS, own["ids_without_prefix"], strict=True):
        assert loaded.tokenizer.encode(text).ids == ids
    loaded = tokenizer_from_hf(sentencepiece_folder(tmp_path / "c", collapse=True))
    assert plain_ids(loaded, "  one   two \n a ") == plain_ids(loaded, "one two \n a")
    assert plain_ids(loaded, "one \n") != plain_ids(loaded, "one\n")


def test_tokenizer_model_that_is_not_read(tmp_path):
    with pytest.raises(WeightsError, match="SentencePiece model of type 1; only BPE"):
        tokenizer_from_hf(sentencepiece_folder(tmp_path / "a", model_type=1))
    wrong = {"added_tokens_decoder": {"7": {"content": "[unused10]"}}}
    with pytest.raises(
        WeightsError, match=r"token '\[unused10\]' has id 7 there; with tokenizer.m"
    ):
        tokenizer_from_hf(sentencepiece_folder(tmp_path / "b", settings=wrong))
    folder = sentencepiece_folder(tmp_path / "c")
    path = folder / "tokenizer.model"
    whole = path.read_bytes()
    for damaged in (b"", whole[:-3], whole[:100] + b"\xff" * 50, b"\x0a\x02\x0a\xff"):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match="is damaged or no tokenizer.model"):
            tokenizer_from_hf(folder)


def test_special_tokens_from_the_older_file(tmp_path):
    folder = hf_folder(tmp_path / "m", {"bos_token": None})
    older = {"bos_token": {"content": "[E]"}, "eos_token": {"content": "[E]"}, "x_token": "a"}
    (folder / "special_tokens_map.json").write_text(json.dumps(older))
    assert tokenizer_from_hf(folder).special == SpecialTokens(eos=1)


def test_truncation_and_padding_left_by_training_are_off(tmp_path):
    folder = hf_folder(tmp_path / "m", {"bos_token": "[B]", "pad_token": "[PAD]"})
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8, pad_id=3, pad_token="?")
    tokenizer.save(path)
    loaded = tokenizer_from_hf(folder)
    assert loaded.tokenizer.encode("a " * 6).ids == [0] + [2] * 6
    assert loaded.special == SpecialTokens(bos=0, add_bos=True)  # a pad without an id is none


def test_named_templates_without_a_default(tmp_path):
    settings = {"chat_template": [{"name": "tool_use", "template": "t"}, "damaged", {}]}
    assert tokenizer_from_hf(hf_folder(tmp_path / "m", settings)).special.chat_template is None


def test_hugging_face_errors(tmp_path):
    with pytest.raises(WeightsError, match="There is no .*tokenizer.json"):
        tokenizer_from_hf(tmp_path)
    with pytest.raises(WeightsError, match=r"eos_token '\[X\]' is not in tokenizer.json"):
        tokenizer_from_hf(hf_folder(tmp_path / "m", {"eos_token": "[X]"}))
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="is not a tokenizer.json"):
        tokenizer_from_hf(tmp_path / "m")


def chat(template, messages=({"role": "user", "content": "Grüß <b>"},), **options):
    tokenizer = Tokenizer(models.WordLevel({"[B]": 0, "[E]": 1}, unk_token="[E]"))
    special = SpecialTokens(bos=0, eos=1, chat_template=template)
    return render_chat(LoadedTokenizer(tokenizer, special), messages, **options)


def test_chat_template():
    template = (
        "{{ bos_token }}{% for m in messages %}\n"
        "  {% if m.role == 'system' %}{% continue %}{% endif %}\n"
        "[{{ m['role'] }}]{{ m['content'] | trim }}{{ eos_token }}\n"
        "{% endfor %}{% if tools %}{{ tools | tojson(ensure_ascii=False, sort_keys=True) }}"
        "{% endif %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}{{ mood }}"
    )
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": " Grüß <b> "}]
    text = chat(template, messages, tools=[{"name": "ü&"}], mood="!")
    assert text == '[B][user]Grüß <b>[E]\n[{"name": "ü&"}][assistant]!'
    assert chat(template, messages, add_generation_prompt=False) == "[B][user]Grüß <b>[E]\n"
    asked = "{{ tools is none }} {{ documents is none }} {{ mood is defined }}"
    assert chat(asked) == "True True False"
    assert chat(asked, tools=[], documents=["d"], mood="!") == "False False True"


@pytest.mark.parametrize(
    "template, message",
    [
        (None, "no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "refuses .*roles must alternate"),
        ("{% for %}", "refuses"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "not allowed|refuses"),
        ("{{ messages.append(1) }}", "not allowed|refuses"),
        ("{{ cycler.__init__.__globals__.os.getcwd() }}", "not allowed|refuses"),
    ],
)
def test_chat_templates_that_are_refused(template, message):
    with pytest.raises(WeightsError, match=message):
        chat(template)
