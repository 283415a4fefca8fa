"""The registry of local tools."""

from __future__ import annotations

import functools
import os

from agents_jax.tools.local_tools import calculator, dates, documents, files, units
from agents_jax.tools.local_tools.folders import open_root
from agents_jax.tools.registry import LocalTool, Registry


def default_registry(
    root: str | os.PathLike | None = None,
    documents_folder: str | os.PathLike | None = None,
    *,
    now: str | None = None,
) -> Registry:
    """Calculator, dates and units; files below `root` and documents, where folders are given.

    Args:
      root: the folder of find_files, search_files and read_file.
      documents_folder: the folder of search_documents; text and Markdown.
      now: an ISO time with its offset for current_date instead of the clock's, so that a run can be
        repeated.

    Raises:
      FolderError: a folder that does not exist.
    """
    registry = Registry()

    def add(definition, function, **bound):
        function = functools.partial(function, **bound) if bound else function
        registry.add(LocalTool(definition, function))

    add(calculator.DEFINITION, calculator.calculate)
    add(dates.CURRENT_DATE, dates.current_date, **({"now": now} if now else {}))
    add(dates.DAY_OF_WEEK, dates.day_of_week)
    add(dates.DAYS_BETWEEN, dates.days_between)
    add(dates.ADD_TO_DATE, dates.add_to_date)
    add(units.DEFINITION, units.convert_units)
    if root is not None:
        folder = str(open_root(root))
        add(files.FIND_FILES, files.find_files, root=folder)
        add(files.SEARCH_FILES, files.search_files, root=folder)
        add(files.READ_FILE, files.read_file, root=folder)
    if documents_folder is not None:
        folder = str(open_root(documents_folder))
        add(documents.DEFINITION, documents.search_documents, root=folder)
    return registry
