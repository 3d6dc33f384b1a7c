"""Inferences that are killed, or that cannot write: nothing is lost, and nothing is half there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from predicted import content, make_bundle, predict, refused, rows, write_scans
from test_configs import write_trained

from med3d_nets.list_files import volumes_in

Run = Callable[..., subprocess.CompletedProcess[str]]

KILLER = """
import os, signal

replace = os.replace

def replace_or_die(source, target, **options):
    if str(target).endswith("case_1_seg.nii.gz"):
        with open(source, "r+b") as file:
            file.truncate(os.path.getsize(source) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(source, target, **options)

os.replace = replace_or_die
"""
"""For ``sitecustomize.py``: kills the process in the middle of the second label map, whose record is there already."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_trained(folder)
    return folder


def command(bundle_run: Run, models: Path, scans: Path, out: Path, *prefix: str, **options: object):
    given = {"img_list": scans, "ckpt_dir": models, "output_dir": out, "no_cuda": True, **options}
    return bundle_run("inference", "configs/inference.json", *prefix, **given)


def test_killed_in_the_middle_of_writing_and_run_again(
    models: Path, bundle_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, out = write_scans(tmp_path / "scans", 0, 1, 2), tmp_path / "out"
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(KILLER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hook"))
    killed = command(bundle_run, models, scans, out, quicklook=False)
    assert killed.returncode == -signal.SIGKILL
    monkeypatch.delenv("PYTHONPATH")
    left = content(out)
    assert [Path(path).name for path in volumes_in(str(out))] == ["case_0_seg.nii.gz"]
    assert sum(name.startswith(".part-") for name in left) == 1

    (scans / "case_3.nii.gz").write_bytes(b"no image")
    again = command(bundle_run, models, scans, out, quicklook=False)
    assert again.returncode == 1
    assert "Traceback" not in again.stderr
    told = again.stderr.splitlines()[-2:]
    assert told[0] == f"error: not predicted: 1 of 4 cases, the others are in {out}:"
    assert told[1].startswith(f"- {scans}/case_3.nii.gz: found an unreadable file (")
    assert "skipping 1 of 4 cases" in again.stdout
    found = content(out)
    assert found["case_0_seg.nii.gz"] == left["case_0_seg.nii.gz"]
    assert {name for name in found if "/" not in name} == {
        *(f"case_{number}_seg.nii.gz" for number in range(3)),
        *("predictions.json", "structures.csv", "structures.json"),
    }
    for number in range(3):
        assert nibabel.load(out / f"case_{number}_seg.nii.gz").get_fdata().shape == (14, 18, 16)
    assert [case["case"] for case in json.loads(found["structures.json"])["cases"]] == ["case_0", "case_1", "case_2"]


def test_a_disk_that_is_full_by_and_by(models: Path, bundle_run: Run, tmp_path: Path) -> None:
    """A limit of the file size stands in for it: above what is written as a trial, below the bytes of probabilities."""
    scans, out = write_scans(tmp_path / "scans", 0), tmp_path / "out"
    noise = np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.int8)
    nibabel.save(nibabel.Nifti1Image(noise, np.eye(4)), scans / "case_0.nii.gz")
    done = command(bundle_run, models, scans, out, "prlimit", "--fsize=70000", probabilities=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: no space left on the disk while writing ")
    assert "Traceback" not in done.stderr
    assert set(content(out)) == {"predictions.json"}


def test_a_disk_that_is_full_from_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, scans = make_bundle(tmp_path), write_scans(tmp_path / "scans", 0)
    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr("med3d_nets.predictions.check_each", lambda *_: pytest.fail("it reads the images"))
    assert refused(bundle, scans).startswith(f"no space left on the disk while writing {bundle / 'predictions'}")


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, scans = make_bundle(tmp_path), write_scans(tmp_path / "scans", 0, 1, 2)
    predict(bundle, [str(scans / "case_0.nii.gz")])
    before = content(bundle / "predictions")
    seen: list[int] = []

    def fill(volume: object) -> None:
        seen.append(1)
        monkeypatch.setattr("os.fsync", full)

    text = refused(bundle, scans, fill)
    assert text.startswith("no space left on the disk while writing ")
    assert content(bundle / "predictions") == before
    windows = len(seen)  # of one case: the next one is not tried
    monkeypatch.undo()
    predict(bundle, scans, before=lambda volume: seen.append(1))
    assert len(seen) == 3 * windows
    assert len(rows(bundle)) == 6


def test_a_full_disk_while_overwriting_leaves_the_old_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, scans = make_bundle(tmp_path), write_scans(tmp_path / "scans", 0)
    predict(bundle, scans, probabilities=True, quicklook=True)
    before = content(bundle / "predictions")
    refused(bundle, scans, lambda volume: monkeypatch.setattr("os.fsync", full), overwrite=True)
    assert content(bundle / "predictions") == before


def test_killed_while_overwriting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two label maps of an earlier network one is replaced: the other one is refused, not mixed with it."""
    bundle, scans = make_bundle(tmp_path), write_scans(tmp_path / "scans", 0, 1)
    predict(bundle, scans)
    windows: list[int] = []

    def stop(volume: object) -> None:
        windows.append(1)
        if len(windows) > 4:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        predict(bundle, scans, before=stop, largest_component=[1, 2], overwrite=True)
    before = content(bundle / "predictions")
    text = refused(bundle, scans, largest_component=[1, 2])
    assert "case_1_seg.nii.gz: exists already, and was made with largest_component [], this run has [1, 2]" in text
    assert "case_0" not in text
    assert content(bundle / "predictions") == before


@pytest.mark.parametrize("below", ["", "/folder"])
def test_a_file_where_the_folder_should_be(below: str, tmp_path: Path) -> None:
    bundle, scans = make_bundle(tmp_path), write_scans(tmp_path / "scans", 0)
    (tmp_path / "file").write_text("mine")
    text = refused(bundle, scans, lambda volume: pytest.fail("it predicts"), output_dir=f"{tmp_path}/file{below}")
    assert f"cannot be written ({tmp_path}/file is a file, expected a folder); give another --output_dir" in text
    assert (tmp_path / "file").read_text() == "mine"


def as_anyone() -> list[str]:
    """Words before a command that take the right to write everywhere from the superuser."""
    if os.geteuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("the superuser writes everywhere, and there is no setpriv (util-linux) to change that")
    return ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]


def test_a_folder_that_is_read_only(models: Path, bundle_run: Run, tmp_path: Path) -> None:
    """It has the answers to one case already; a run with another one says so at once, and changes nothing."""
    scans, out = write_scans(tmp_path / "scans", 0), tmp_path / "out"
    assert command(bundle_run, models, scans, out).returncode == 0
    write_scans(tmp_path / "scans", 1)
    before = content(out)
    for folder in (out, out / "cases", out / "quicklook"):
        folder.chmod(0o555)
    done = command(bundle_run, models, scans, out, *as_anyone())
    for folder in (out, out / "cases", out / "quicklook"):
        folder.chmod(0o755)
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1]
        == f"error: {out}: cannot be written (Permission denied); give another --output_dir"
    )
    assert "Traceback" not in done.stderr
    assert content(out) == before


@pytest.mark.slow
def test_two_processes_skip_and_tell_as_one_does(models: Path, bundle_run: Run, tmp_path: Path) -> None:
    """A finished case, a bad one, and then fewer cases than processes."""
    scans, config = (
        write_scans(tmp_path / "scans", 0, 1, 2),
        "['configs/inference.json','configs/multi_gpu_inference.json']",
    )
    options = {"img_list": scans, "ckpt_dir": models, "no_cuda": True, "quicklook": False}
    one, two = tmp_path / "one", tmp_path / "two"
    first = bundle_run("inference", "configs/inference.json", **{**options, "img_list": scans / "case_1.nii.gz"},
                       output_dir=two)  # fmt: skip
    assert first.returncode == 0, first.stderr
    (scans / "case_3.nii.gz").write_bytes(b"no image")
    ends = [
        bundle_run("inference", "configs/inference.json", **options, output_dir=one),
        bundle_run("inference", config, processes=2, **options, output_dir=two),
    ]
    for done in ends:
        assert done.returncode == 1
        assert done.stderr.count("error: not predicted: 1 of 4 cases") == 1
        assert done.stdout.count("left out 1 of 4 cases") == 1
    tables = [(folder / "structures.csv").read_text() for folder in (one, two)]
    assert tables[0].count("\n") == 7
    assert tables[0] == tables[1]
    (scans / "case_3.nii.gz").unlink()
    (two / "case_2_seg.nii.gz").unlink()
    last = bundle_run("inference", config, processes=2, **options, output_dir=two)
    assert last.returncode == 0, last.stderr
    assert (two / "structures.csv").read_text() == tables[0]
    for number in range(3):
        both = [nibabel.load(folder / f"case_{number}_seg.nii.gz").get_fdata() for folder in (one, two)]
        np.testing.assert_array_equal(*both)
