"""Execution of local tools in a process of their own."""

from agents_jax.tools.execution.executor import ExecutionError, Executor
from agents_jax.tools.execution.observation import ErrorKind, Observation
from agents_jax.tools.execution.reference import ToolReferenceError, reference

__all__ = [
    "ErrorKind",
    "ExecutionError",
    "Executor",
    "Observation",
    "ToolReferenceError",
    "reference",
]
