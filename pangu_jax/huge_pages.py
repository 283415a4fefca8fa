"""Huge pages for large arrays on a CPU: a setting of the C library that a process is born with.

XLA takes the temporaries of a program from the C library anew in every call and gives them back, so
that each step of training touches hundreds of MB page by page for the first time. glibc (2.35 and
newer) can ask the kernel for huge pages there, 2 MiB instead of 4 KiB, but reads that wish from the
environment at the start only.
"""

from __future__ import annotations

import os
import pathlib
import sys

SWITCH = "PANGU_JAX_HUGE_PAGES"  # 'off' leaves everything as it is
_TUNABLES, _SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_KERNEL = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_OLDEST = (2, 35)


def restart_with_huge_pages() -> None:
    """Runs the same command again in the same process with the setting, where it does something.

    That is Linux with glibc and a kernel that gives huge pages to who asks ('madvise'; with
    'always' there is nothing to ask for). To be called first of all, before anything is started.
    """
    environment = with_huge_pages(os.environ)
    if environment is not None:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def with_huge_pages(environment) -> dict[str, str] | None:
    """A copy of the environment with the setting; None where it is there or would do nothing."""
    tunables = environment.get(_TUNABLES, "")
    if environment.get(SWITCH, "on") == "off" or _SETTING in tunables or not _can_help():
        return None
    setting = f"{_SETTING}=1"
    return {**environment, _TUNABLES: f"{tunables}:{setting}" if tunables else setting}


def _can_help() -> bool:
    try:
        return "[madvise]" in _KERNEL.read_text() and _glibc_version() >= _OLDEST
    except OSError:
        return False


def _glibc_version() -> tuple[int, ...]:
    """(0,) where the C library is another one."""
    try:
        name, _, version = os.confstr("CS_GNU_LIBC_VERSION").partition(" ")
        return tuple(map(int, version.split("."))) if name == "glibc" else (0,)
    except (AttributeError, ValueError):
        return (0,)
