"""The Berkeley function-calling leaderboard: its single-turn Python items, checker and prompts."""

from agents_jax.tools.bfcl.checker import Verdict, check
from agents_jax.tools.bfcl.data import AST_CATEGORIES, CATEGORIES, CITATION, LICENCE, Item, load
from agents_jax.tools.bfcl.evaluate import Report, evaluate
from agents_jax.tools.bfcl.gold import gold_calls, is_solvable
from agents_jax.tools.bfcl.prompts import REFUSAL, prompt_messages, to_chat, write_chats
from agents_jax.tools.bfcl.splits import Split, split_by_category, split_by_function

__all__ = [
    "AST_CATEGORIES",
    "CATEGORIES",
    "CITATION",
    "Item",
    "LICENCE",
    "REFUSAL",
    "Report",
    "Split",
    "Verdict",
    "check",
    "evaluate",
    "gold_calls",
    "is_solvable",
    "load",
    "prompt_messages",
    "split_by_category",
    "split_by_function",
    "to_chat",
    "write_chats",
]
