"""The Berkeley function-calling leaderboard: its single-turn items, checker and prompts."""

from agents_jax.tools.bfcl.checker import Verdict, check
from agents_jax.tools.bfcl.data import (
    ANSWERED_CATEGORIES,
    AST_CATEGORIES,
    CATEGORIES,
    CITATION,
    LANGUAGE_CATEGORIES,
    LICENCE,
    Item,
    load,
)
from agents_jax.tools.bfcl.evaluate import Report, evaluate
from agents_jax.tools.bfcl.gold import gold_calls, gold_text, is_solvable
from agents_jax.tools.bfcl.prompts import REFUSAL, prompt_messages, to_chat, write_chats
from agents_jax.tools.bfcl.splits import Split, split_by_category, split_by_function

__all__ = [
    "ANSWERED_CATEGORIES",
    "AST_CATEGORIES",
    "CATEGORIES",
    "CITATION",
    "Item",
    "LANGUAGE_CATEGORIES",
    "LICENCE",
    "REFUSAL",
    "Report",
    "Split",
    "Verdict",
    "check",
    "evaluate",
    "gold_calls",
    "gold_text",
    "is_solvable",
    "load",
    "prompt_messages",
    "split_by_category",
    "split_by_function",
    "to_chat",
    "write_chats",
]
