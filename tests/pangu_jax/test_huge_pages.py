"""The setting for huge pages: when it is asked for, and that a process is run with it."""

import os
import subprocess
import sys

import pytest

from pangu_jax import huge_pages


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Sets what the kernel says, on glibc 2.36."""
    file = tmp_path / "enabled"
    monkeypatch.setattr(huge_pages, "_KERNEL", file)
    monkeypatch.setattr(huge_pages.os, "confstr", lambda name: "glibc 2.36")
    file.write_text("always [madvise] never\n")
    return file


def test_the_setting_joins_what_is_there(kernel):
    assert huge_pages.with_huge_pages({"A": "b"}) == {
        "A": "b",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    joined = huge_pages.with_huge_pages({"GLIBC_TUNABLES": "glibc.malloc.check=0"})
    assert joined == {"GLIBC_TUNABLES": "glibc.malloc.check=0:glibc.malloc.hugetlb=1"}


@pytest.mark.parametrize(
    "environment",
    [
        {"PANGU_JAX_HUGE_PAGES": "off"},
        {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},  # set already: no second restart
        {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},  # the user's own choice
    ],
)
def test_it_is_left_alone(kernel, environment):
    assert huge_pages.with_huge_pages(environment) is None


@pytest.mark.parametrize("modes", ["[always] madvise never", "always madvise [never]", None])
def test_kernels_that_do_not_wait_to_be_asked(kernel, modes):
    if modes is None:
        kernel.unlink()
    else:
        kernel.write_text(modes)
    assert huge_pages.with_huge_pages({}) is None


@pytest.mark.parametrize("version", ["glibc 2.34", "musl 1.2", "glibc", ""])
def test_other_c_libraries(kernel, version, monkeypatch):
    monkeypatch.setattr(huge_pages.os, "confstr", lambda name: version)
    assert huge_pages.with_huge_pages({}) is None


def test_a_command_is_run_again_with_its_arguments(tmp_path):
    if huge_pages.with_huge_pages({}) is None:
        pytest.skip("this kernel or C library gives no huge pages to who asks")
    script = tmp_path / "command.py"
    script.write_text(
        "import os, sys\n"
        "from pangu_jax.huge_pages import restart_with_huge_pages\n"
        "print('begun', flush=True)\n"
        "restart_with_huge_pages()\n"
        "print(os.environ['GLIBC_TUNABLES'], sys.argv[1:], sys.flags.dont_write_bytecode)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-B", str(script), "a b", "--c=d"], env=environment, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "begun", "begun", "glibc.malloc.hugetlb=1 ['a b', '--c=d'] 1",
    ]  # fmt: skip
