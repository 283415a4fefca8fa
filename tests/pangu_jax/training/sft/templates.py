"""Chat templates of several families, written for these tests, and a tokenizer for each."""

import pytest

# As the file of SmolLM2-135M-Instruct has it: a default system message, content by concatenation.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Llama 3 in kind: bos, headers, trimmed content, nothing behind the end of a turn.
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}<|pad|>\n\n"
    "{{ message['content'] | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|pad|>\n\n{% endif %}"
)
# Reasoning is kept in the last turn only.
STRIPS_THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and not loop.last and '</think>' in message['content'] %}"
    "{{ message['content'].split('</think>')[-1] }}{% else %}{{ message['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Opens the turn with what it does not write itself.
OPENS_THINKING = STRIPS_THINKING.replace(
    "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
)
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>\n"
    "{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}<call>"
    "{{ call.function | tojson }}</call>{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(template):
    """Byte tokens with ChatML's marks, and this template."""
    pytest.importorskip("tokenizers")
    pytest.importorskip("jinja2")
    from pangu_jax.training.sft.builtin import tiny_tokenizer

    return tiny_tokenizer(template)


def chat(*turns, **more):
    """A chat from ('role', 'content') pairs."""
    from pangu_jax.training.sft.records import Chat

    messages = tuple(
        turn if isinstance(turn, dict) else {"role": turn[0], "content": turn[1]} for turn in turns
    )
    return Chat(messages=messages, where="test:1", **more)


def texts(rendered):
    """The parts of a rendering that are to be learned."""
    return [rendered.text[start:stop] for start, stop in rendered.spans]
