"""The Berkeley function-calling leaderboard: its single-turn Python items, checker and prompts."""

from agents_jax.tools.bfcl.checker import Verdict, check
from agents_jax.tools.bfcl.data import AST_CATEGORIES, CATEGORIES, CITATION, LICENCE, Item, load
from agents_jax.tools.bfcl.evaluate import Report, evaluate
from agents_jax.tools.bfcl.gold import gold_calls
from agents_jax.tools.bfcl.prompts import prompt_messages, to_chat
from agents_jax.tools.bfcl.splits import Split, split_by_category, split_by_function

__all__ = [
    "AST_CATEGORIES",
    "CATEGORIES",
    "CITATION",
    "Item",
    "LICENCE",
    "Report",
    "Split",
    "Verdict",
    "check",
    "evaluate",
    "gold_calls",
    "load",
    "prompt_messages",
    "split_by_category",
    "split_by_function",
    "to_chat",
]
