"""The shipped inference: what it writes, skips, and tells of bad cases."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.data import Dataset
from predicted import content, make_bundle, predict, refused, rows, write_scans
from torch import Tensor

from med3d_nets.checks import read_volume
from med3d_nets.errors import Med3dError
from med3d_nets.predictions import CaseDataset, deal
from med3d_nets.structures import measure_structures
from med3d_nets.transforms import not_background


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    return write_scans(tmp_path / "scans", 0, 1, 2)


def label_map(bundle: Path, case: str = "case_0") -> np.ndarray:
    return np.asanyarray(nibabel.load(bundle / "predictions" / f"{case}_seg.nii.gz").dataobj)


def test_what_is_written(bundle: Path, scans: Path) -> None:
    predict(bundle, scans, quicklook=True)
    cases = [f"case_{number}" for number in range(3)]
    assert set(content(bundle / "predictions")) == {
        *("predictions.json", "structures.csv", "structures.json"),
        *(f"{case}_seg.nii.gz" for case in cases),
        *(f"cases/{case}_seg.json" for case in cases),
        *(f"quicklook/{case}.png" for case in cases),
    }
    scan, affine = read_volume(str(scans / "case_1.nii.gz"), [])
    expected = measure_structures(label_map(bundle, "case_1"), scan, affine, ["background", "one", "two"])
    assert all(row["voxels"] for row in expected)
    tables = json.loads((bundle / "predictions/structures.json").read_text())
    assert tables["cases"][1]["structures"] == expected
    found = rows(bundle)
    assert [(row["case"], row["structure"]) for row in found] == [
        (case, name) for case in cases for name in ("one", "two")
    ]
    assert float(found[2]["volume_ml"]) == expected[0]["volume_ml"]


def test_a_second_run_changes_nothing(bundle: Path, scans: Path, caplog: pytest.LogCaptureFixture) -> None:
    predict(bundle, scans)
    before = content(bundle / "predictions")
    times = {path: path.stat().st_mtime_ns for path in (bundle / "predictions").rglob("*_seg.*")}
    with caplog.at_level("INFO"):
        predict(bundle, scans, before=lambda volume: pytest.fail("it predicts"))
    assert "skipping 3 of 3 cases, which are finished; --overwrite True repeats them" in caplog.text
    assert content(bundle / "predictions") == before
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_what_is_missing_is_predicted_and_the_table_is_whole(bundle: Path, scans: Path) -> None:
    predict(bundle, [str(scans / "case_1.nii.gz")])
    assert {row["case"] for row in rows(bundle)} == {"case_1"}
    predict(bundle, [str(scans / "case_0.nii.gz")])
    assert {row["case"] for row in rows(bundle)} == {"case_0", "case_1"}
    (bundle / "predictions/structures.csv").unlink()
    seen: list[Tensor] = []
    predict(bundle, scans, before=seen.append)
    assert {row["case"] for row in rows(bundle)} == {"case_0", "case_1", "case_2"}
    windows = len(seen)
    predict(bundle, scans, before=seen.append, overwrite=True)
    assert len(seen) == 4 * windows


def test_an_overwritten_case_has_the_new_label_map(bundle: Path, scans: Path) -> None:
    predict(bundle, scans)
    before = label_map(bundle)
    assert "largest_component [], this run has [1, 2]" in refused(bundle, scans, largest_component=[1, 2])
    assert np.array_equal(label_map(bundle), before)
    predict(bundle, scans, largest_component=[1, 2], overwrite=True)
    assert not np.array_equal(label_map(bundle), before)
    assert {row["components"] for row in rows(bundle)} == {"1"}


def test_other_weights_are_refused_before_any_work(bundle: Path, scans: Path) -> None:
    predict(bundle, scans)
    (bundle / "models/model.pt").write_text("trained anew")
    before = content(bundle / "predictions")
    text = refused(bundle, write_scans(scans.parent, 3), lambda volume: pytest.fail("it predicts"))
    assert "predictions.json: the label maps in this folder were made with SHA-256 of the weights ['" in text
    assert text.endswith("give another --output_dir or pass --overwrite True")
    assert content(bundle / "predictions") == before


def test_all_label_maps_in_the_way_are_named(bundle: Path, scans: Path) -> None:
    (bundle / "predictions").mkdir()
    for number in (0, 2):
        (bundle / f"predictions/case_{number}_seg.nii.gz").write_text("mine")
    text = refused(bundle, scans)
    assert [f"case_{number}_seg.nii.gz: exists already" in text for number in range(3)] == [True, False, True]
    assert (bundle / "predictions/case_0_seg.nii.gz").read_text() == "mine"


def spoil(scans: Path) -> None:
    """Bad cases of every kind beside three good ones."""
    write_scans(scans.parent, 3, 4, 5)
    (scans / "case_3.nii.gz").write_bytes((scans / "case_3.nii.gz").read_bytes()[:600])
    for number, voxels in ((4, np.full((4, 5, 6), np.nan, np.float32)), (5, np.ones((4, 5, 6, 2), np.float32))):
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), scans / f"case_{number}.nii.gz")


def test_bad_cases_are_told_and_the_others_predicted(
    bundle: Path, scans: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(scans)
    text = refused(bundle, scans)
    assert text.startswith(f"not predicted: 3 of 6 cases, the others are in {bundle}/predictions:\n- ")
    for part in (
        "case_3.nii.gz: found an unreadable file",
        "case_4.nii.gz: found 120 NaN",
        "case_5.nii.gz: found shape",
    ):
        assert part in text
        assert part in caplog.text[caplog.text.index("left out 3 of 6 cases") :]
    assert {row["case"] for row in rows(bundle)} == {"case_0", "case_1", "case_2"}
    again = refused(bundle, scans, lambda volume: pytest.fail("it predicts"))
    assert again == text


def test_strict_predicts_nothing_where_a_case_is_bad(bundle: Path, scans: Path) -> None:
    spoil(scans)
    text = refused(bundle, scans, lambda volume: pytest.fail("it predicts"), strict=True)
    assert text.startswith("the data list has ")
    assert not list((bundle / "predictions").rglob("*.*"))


def test_a_list_with_a_file_that_is_not_there(bundle: Path, scans: Path) -> None:
    (scans / "list.txt").write_text("case_0.nii.gz\ngone.nii.gz\n")
    text = refused(bundle, scans / "list.txt", data_root=str(scans))
    assert "not predicted: 1 of 2 cases" in text
    assert f"{scans / 'gone.nii.gz'}: found no such file" in text
    assert {row["case"] for row in rows(bundle)} == {"case_0"}


def fail_on(number: int, error: Exception, scans: Path) -> object:
    """What raises when the network gets a volume."""
    seen: list[int] = []

    def call(volume: Tensor) -> None:
        seen.append(1)
        if len(seen) == number:
            raise error

    return call


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError("16 GB"), "case_0.nii.gz: out of memory (16 GB)"),
        (RuntimeError("surprise"), "case_0.nii.gz: RuntimeError: surprise"),
    ],
)
def test_a_case_that_fails_alone(
    error: Exception, expected: str, bundle: Path, scans: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = refused(bundle, scans, fail_on(1, error, scans))
    assert text.startswith("not predicted: 1 of 3 cases")
    assert expected in text
    assert ("Traceback" in caplog.text) == isinstance(error, RuntimeError)  # that of a bug is worth having
    assert {row["case"] for row in rows(bundle)} == {"case_1", "case_2"}
    predict(bundle, scans)
    assert {row["case"] for row in rows(bundle)} == {"case_0", "case_1", "case_2"}


def test_strict_ends_at_the_first_case_that_fails(bundle: Path, scans: Path) -> None:
    text = refused(bundle, scans, fail_on(1, MemoryError("16 GB"), scans), strict=True)
    assert text.startswith("out of memory (16 GB)")
    assert not list((bundle / "predictions").rglob("*.nii.gz"))


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_case_that_cannot_be_prepared(
    num_workers: int, bundle: Path, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(volume: Tensor) -> Tensor:
        if (volume > 1000).any():
            raise MemoryError("of the loader")
        return not_background(volume)

    monkeypatch.setattr("med3d_nets.transforms.not_background", fail)
    scan = nibabel.load(scans / "case_1.nii.gz")
    nibabel.save(nibabel.Nifti1Image(10 * scan.get_fdata(dtype=np.float32), scan.affine), scans / "case_1.nii.gz")
    text = refused(bundle, scans, num_workers=num_workers)
    assert text.startswith("not predicted: 1 of 3 cases")
    assert "case_1.nii.gz: out of memory (of the loader)" in text
    assert {row["case"] for row in rows(bundle)} == {"case_0", "case_2"}


def test_cases_are_dealt_also_where_there_are_fewer_than_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
    dealt = []
    for rank in range(2):
        monkeypatch.setattr("ignite.distributed.get_rank", lambda rank=rank: rank)
        dealt.append([deal(CaseDataset([{"image": "x"}] * count)) for count in (3, 1, 0)])
    assert dealt == [[[0, 2], [0], []], [[1], [], []]]
    with pytest.raises(Med3dError, match="found 1 case to evaluate or infer for 2 processes"):
        deal(Dataset([1]))


def test_answers_beside_the_images_are_not_taken_for_images(bundle: Path, scans: Path) -> None:
    options = {"output_dir": str(scans), "probabilities": True}
    (scans / ".part-0-1.nii.gz").write_text("half a file")
    predict(bundle, scans, **options)
    before = content(scans)
    assert sum(name.endswith("_seg.nii.gz") for name in before) == 3
    predict(bundle, scans, before=lambda volume: pytest.fail("it predicts"), **options)
    assert content(scans) == before


def test_a_quick_look_that_fails_costs_no_label_map(
    bundle: Path, scans: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> bytes:
        raise ValueError("no fonts")

    monkeypatch.setattr("med3d_nets.predictions.draw_quicklook", fail)
    predict(bundle, scans, quicklook=True)
    assert caplog.text.count("no quick look could be drawn (ValueError: no fonts)") == 3
    assert len(rows(bundle)) == 6


@pytest.mark.parametrize("recipe", ["patch", "whole"])
def test_probabilities_are_those_of_the_label_map(recipe: str, tmp_path: Path, scans: Path) -> None:
    bundle = make_bundle(tmp_path, recipe)
    scan = nibabel.load(scans / "case_0.nii.gz")
    margin = scan.get_fdata(dtype=np.float32)
    margin[:5] = 0
    nibabel.save(nibabel.Nifti1Image(margin, scan.affine), scans / "case_0.nii.gz")
    predict(bundle, scans, probabilities=True)
    file = nibabel.load(bundle / "predictions/case_0_prob.nii.gz")
    assert file.shape == (*scan.shape, 3)
    assert file.get_data_dtype() == np.uint8
    assert file.affine.tobytes() == scan.affine.tobytes()
    found = file.get_fdata()
    np.testing.assert_allclose(found.sum(-1), 1, atol=0.01)
    labels = label_map(bundle)
    chosen = np.take_along_axis(found, labels[..., None].astype(int), -1)[..., 0]
    assert (chosen >= found.max(-1) - 0.003).all()  # two classes may be as probable, to a 255th
    assert len(np.unique(found)) > 50
    np.testing.assert_allclose(found[:3] - [1, 0, 0], 0, atol=1e-6)  # cropped away
    predict(bundle, scans, before=lambda volume: pytest.fail("it predicts"), probabilities=True)
