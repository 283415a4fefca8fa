"""Pinned wheels: hashes, safe unpacking, offline use. No test here touches a network."""

from __future__ import annotations

import hashlib
import multiprocessing
import stat
import subprocess
import zipfile

import pytest

from pangu_jax.data import wheel as wheel_lib
from pangu_jax.data.wheel import (
    WheelError,
    WheelHashError,
    WheelSpec,
    WheelUnavailableError,
    check_cached,
    fetch_member,
    fetch_wheel,
)


def make_wheel(folder, members, name="toy_data-1.0-py3-none-any.whl"):
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return path, WheelSpec("toy-data", "1.0", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def cached(tmp_path):
    folder = tmp_path / "cache" / "wheels"
    folder.mkdir(parents=True)
    path, spec = make_wheel(folder, {"toy/a.txt": b"alpha", "toy/sub/b.txt": b"beta"})
    return path, spec, tmp_path / "cache"


@pytest.fixture
def no_pip(monkeypatch):
    """pip as it behaves without a network."""

    def run(command, **kwargs):
        assert "download" in command
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")

    monkeypatch.setattr(wheel_lib.subprocess, "run", run)


def test_members_come_from_the_cache_without_pip(cached, no_pip):
    _, spec, cache = cached
    a, b = fetch_member(spec, ["toy/a.txt", "toy/sub/b.txt"], cache=cache)
    assert (a.read_bytes(), b.read_bytes()) == (b"alpha", b"beta")
    folder = fetch_member(spec, "toy/", cache=cache)
    assert sorted(p.name for p in folder.rglob("*.txt")) == ["a.txt", "b.txt"]


def test_a_damaged_unpacked_member_is_unpacked_again(cached, no_pip):
    _, spec, cache = cached
    member = fetch_member(spec, "toy/a.txt", cache=cache)
    member.write_bytes(b"alphX")
    assert fetch_member(spec, "toy/a.txt", cache=cache).read_bytes() == b"alpha"


def test_wrong_hash_of_the_cached_wheel(cached, no_pip):
    path, spec, cache = cached
    path.write_bytes(path.read_bytes() + b"x")
    for use in (
        lambda: fetch_wheel(spec, cache=cache),
        lambda: fetch_member(spec, "toy/a.txt", cache=cache),
        lambda: check_cached(spec, cache=cache),
    ):
        with pytest.raises(WheelHashError, match=r"toy_data-1.0.*SHA-256.*Delete it"):
            use()
    path.unlink()
    check_cached(spec, cache=cache)  # nothing cached is not a wrong hash


def test_nothing_cached_and_no_network(tmp_path, no_pip):
    spec = WheelSpec("toy-data", "1.0", "0" * 64)
    with pytest.raises(WheelUnavailableError) as error:
        fetch_wheel(spec, cache=tmp_path)
    text = str(error.value)
    assert "No matching distribution" in text
    assert "pip download --no-deps toy-data==1.0" in text and str(tmp_path / "wheels") in text
    assert not list((tmp_path / "wheels").glob(".download-*"))


def test_download_with_another_hash_is_not_cached(tmp_path, monkeypatch):
    def run(command, **kwargs):
        make_wheel(wheel_lib.Path(command[command.index("-d") + 1]), {"toy/a.txt": b"evil"})
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheel_lib.subprocess, "run", run)
    with pytest.raises(WheelHashError, match="Nothing was cached"):
        fetch_wheel(WheelSpec("toy-data", "1.0", "0" * 64), cache=tmp_path)
    assert not list((tmp_path / "wheels").glob("*.whl"))


def test_one_build_of_several_is_asked_for_by_its_tag(tmp_path, monkeypatch):
    asked = []

    def run(command, **kwargs):
        asked.extend(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: nothing there")

    monkeypatch.setattr(wheel_lib.subprocess, "run", run)
    spec = WheelSpec("toy-data", "1.0", "0" * 64, tag="cp311-abi3-manylinux2014_x86_64")
    with pytest.raises(WheelUnavailableError, match="--python-version 311 --abi abi3") as error:
        fetch_wheel(spec, cache=tmp_path)
    text = " ".join(asked)
    options = "--implementation cp --python-version 311 --abi abi3 --platform manylinux2014_x86_64"
    assert options in text and options in str(error.value)
    assert text.count("--only-binary=:all:") == 1


@pytest.mark.parametrize("member", ["../evil.txt", "toy/../../evil.txt", "/evil.txt"])
def test_members_cannot_leave_the_folder(tmp_path, no_pip, member):
    folder = tmp_path / "wheels"
    folder.mkdir()
    _, spec = make_wheel(folder, {member: b"evil"})
    with pytest.raises(WheelError, match="leads out"):
        fetch_member(spec, member, cache=tmp_path)
    assert not list(tmp_path.rglob("evil.txt"))


def test_links_are_refused(tmp_path, no_pip):
    folder = tmp_path / "wheels"
    folder.mkdir()
    link = zipfile.ZipInfo("toy/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = folder / "toy_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    spec = WheelSpec("toy-data", "1.0", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(WheelError, match="leads out"):
        fetch_member(spec, "toy/link", cache=tmp_path)


def test_size_bound_and_unknown_names(cached, no_pip):
    _, spec, cache = cached
    with pytest.raises(WheelError, match="5 bytes unpacked, more than the allowed 4"):
        fetch_member(spec, "toy/a.txt", cache=cache, max_bytes=4)
    with pytest.raises(WheelError, match="no member 'a.txt'.*Did you mean 'toy/a.txt'"):
        fetch_member(spec, "a.txt", cache=cache)
    with pytest.raises(WheelError, match="No pinned wheel 'nonesuch'; pinned are recbole"):
        fetch_wheel("nonesuch", cache=cache)


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PANGU_JAX_CACHE", str(tmp_path / "x"))
    assert wheel_lib.cache_dir() == tmp_path / "x"
    monkeypatch.delenv("PANGU_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "y"))
    assert wheel_lib.cache_dir() == tmp_path / "y" / "pangu_jax"


def _hold(path, entered, leave):
    with wheel_lib.locked(path):
        entered.set()
        leave.wait(20)


def test_the_lock_keeps_a_second_process_out(tmp_path):
    context = multiprocessing.get_context("spawn")
    entered, leave, second = (context.Event() for _ in range(3))
    path = tmp_path / "lock"
    first = context.Process(target=_hold, args=(path, entered, leave))
    other = context.Process(target=_hold, args=(path, second, leave))
    first.start()
    assert entered.wait(20)
    other.start()
    assert not second.wait(1.5)
    leave.set()
    assert second.wait(20)
    first.join(20)
    other.join(20)


def test_pins_are_well_formed():
    for name, spec in wheel_lib.PINNED_WHEELS.items():
        assert name == spec.package and len(spec.sha256) == 64
        assert int(spec.sha256, 16) > 0


@pytest.mark.parametrize("value", ["off", "OFF", "0", "none"])
def test_switching_off_the_compilation_cache_names_no_folder(value, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PANGU_JAX_CACHE", value)
    assert wheel_lib.cache_dir() == tmp_path / "pangu_jax"
    monkeypatch.setenv("PANGU_JAX_CACHE", str(tmp_path / "other"))
    assert wheel_lib.cache_dir() == tmp_path / "other"
