"""JAX's persistent compilation cache, on by default in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import warnings

from pangu_jax.data.wheel import CACHE_OFF, cache_dir


def enable_compilation_cache() -> pathlib.Path | None:
    """Switches the cache on and returns its folder, or None where it stays off.

    PANGU_JAX_CACHE=off switches it off, JAX_COMPILATION_CACHE_DIR takes precedence over ours. A
    folder that cannot be written is a warning, never an error.
    """
    import jax

    if os.environ.get("PANGU_JAX_CACHE", "").lower() in CACHE_OFF:
        return None
    if jax.config.jax_compilation_cache_dir:
        return pathlib.Path(jax.config.jax_compilation_cache_dir)
    folder = cache_dir() / f"xla-{_machine()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        warnings.warn(
            f"The compilation cache folder {folder} cannot be written; every start will "
            "compile anew. Set PANGU_JAX_CACHE to a folder that can.",
            stacklevel=2,
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return folder


def _machine() -> str:
    """Short name of the processor's instruction set: CPU programs are compiled for it, and a
    home folder may be shared by unlike machines."""
    flags = ""
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags = line
                break
    except OSError:
        flags = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
