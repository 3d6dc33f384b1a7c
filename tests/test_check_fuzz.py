"""``med3d check`` on damaged headers and files: whatever is in them, a finding or none, and soon."""

from __future__ import annotations

import gzip
import signal
import tempfile
import tracemalloc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_check_command import Command, command, data, good_data  # noqa: F401  fixtures

from med3d_nets.checking.cases import Case, Options, Record, read_case
from med3d_nets.checking.comparisons import compare
from med3d_nets.checking.findings import KINDS
from med3d_nets.checking.pictures import PictureStore

SECONDS = 20
HEADER = 352
QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)

# Where a NIfTI-1 header has what, by number and kind of the values: nifti1.h.
FIELDS = {
    "sizeof_hdr": (0, "<i4", 1),
    "dim": (40, "<i2", 8),
    "datatype": (70, "<i2", 1),
    "bitpix": (72, "<i2", 1),
    "pixdim": (76, "<f4", 8),
    "vox_offset": (108, "<f4", 1),
    "scl": (112, "<f4", 2),
    "xyzt_units": (123, "<u1", 1),
    "form_codes": (252, "<i2", 2),
    "quaternion": (256, "<f4", 6),
    "srow": (280, "<f4", 12),
    "magic": (344, "<u1", 8),
}


@contextmanager
def time_limit() -> Iterator[None]:
    """Fail where the system has alarms and something hangs."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"took longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@cache
def whole() -> bytes:
    """A file, not compressed."""
    voxels = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    return bytes(nib.Nifti1Image(voxels, np.diag([1.0, 2.0, 1.5, 1.0])).to_bytes())


def changed_header(changed: list[tuple[int, bytes]], packed: bool, content: bytes = b"") -> bytes:
    """A file with other bytes at some places of its header."""
    new = bytearray(content or whole())
    for start, part in changed:
        new[start : start + len(part)] = part
    return gzip.compress(bytes(new)) if packed else bytes(new)


def examine(content: bytes, packed: bool, label: bool) -> Record:
    """What is found in a file that is an image, and a label map too if it is asked for."""
    with tempfile.TemporaryDirectory() as folder, PictureStore() as store, time_limit(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / ("a.nii.gz" if packed else "a.nii")
        path.write_bytes(content)
        record = read_case(Case("training", (str(path),), str(path) if label else ""), Options(), store)
        compare([record] * 12, [str(n) for n in range(12)], 0)
    for problem in record.problems:
        assert "cannot be measured" not in problem  # the guard against what nobody thought of
        assert problem.kind in KINDS  # type: ignore[attr-defined]
        assert problem.startswith(str(path))
        assert ": found " in problem
        assert "; expected " in problem
    assert record.problems or record.picture is not None
    return record


def values(kind: str, number: int) -> st.SearchStrategy[bytes]:
    """Bytes of a field: anything, with what is small and what is at an end most often."""
    dtype = np.dtype(kind)
    single: st.SearchStrategy[Any] = st.floats(width=32)
    if dtype.kind != "f":
        ends = np.iinfo(dtype)
        single = st.one_of(st.integers(-3 if dtype.kind == "i" else 0, 9), st.integers(int(ends.min), int(ends.max)))
    return st.lists(single, min_size=number, max_size=number).map(lambda given: np.array(given, dtype).tobytes())


changes = st.lists(
    st.sampled_from(sorted(FIELDS)).flatmap(
        lambda name: st.tuples(st.just(FIELDS[name][0]), values(FIELDS[name][1], FIELDS[name][2]))
    ),
    min_size=1,
    max_size=3,
)


@QUICK
@given(changes, st.booleans(), st.booleans())
def test_headers(changed: list[tuple[int, bytes]], packed: bool, label: bool) -> None:
    examine(changed_header(changed, packed), packed, label)


@QUICK
@given(st.binary(min_size=HEADER, max_size=HEADER))
def test_headers_of_noise(noise: bytes) -> None:
    examine(noise + whole()[HEADER:], False, False)


@QUICK
@given(st.integers(0, len(whole()) - 1))
def test_truncated_files(length: int) -> None:
    assert examine(whole()[:length], False, True).problems


@QUICK
@given(st.integers(0, len(gzip.compress(whole())) - 1))
def test_truncated_gzip_files(length: int) -> None:
    assert examine(gzip.compress(whole(), mtime=0)[:length], True, True).problems


@QUICK
@given(st.integers(0, len(gzip.compress(whole(), mtime=0)) - 1), st.integers(1, 255))
def test_damaged_gzip_files(place: int, change: int) -> None:
    content = bytearray(gzip.compress(whole(), mtime=0))
    content[place] ^= change
    examine(bytes(content), True, False)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("lengths", [[3, 32767, 32767, 32767], [3, 1290, 1290, 1290], [7] + [9] * 7])
def test_sizes_that_are_lies_take_no_memory(lengths: list[int], packed: bool) -> None:
    content = changed_header([(FIELDS["dim"][0], np.array(lengths, "<i2").tobytes())], packed)
    tracemalloc.start()
    try:
        assert examine(content, packed, True).problems
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_more_voxels_than_the_header_says() -> None:
    content = gzip.compress(whole() + bytes(4_000_000))
    (problem,) = examine(content, True, False).problems
    assert "more than twice the 210 voxels" in problem


# Each example spoils the file anew and replaces the report.
@settings(QUICK, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changed=changes)
def test_the_command_itself(changed: list[tuple[int, bytes]], data: Path, command: Command) -> None:  # noqa: F811
    content = gzip.decompress((data / "images/p06.nii.gz").read_bytes())
    (data / "images/p05.nii.gz").write_bytes(changed_header(changed, True, content))
    with time_limit():
        status, printed = command(data, "--overwrite", True)
    assert status in (0, 1)
    assert printed.startswith("12 cases")
