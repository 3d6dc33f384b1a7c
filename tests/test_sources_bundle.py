"""The shipped JSON on data in other forms: nnU-Net's folders with channels, and inference from every format."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE, OBLIQUE, write_case
from other_formats import write_metaimage, write_nrrd, write_series
from published import redraw, write_published
from test_every_bundle import workflow
from test_orientations import INTENSITY, SPACING, Threshold, oblique, volume

from med3d_nets.settings import Settings, read_settings
from med3d_nets.weights import read_tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLE, tmp_path / "bundles" / BUNDLE.name))


def write_channels(folder: Path, part: str, number: int) -> None:
    """A case of two channels, the second of which is noise, in nnU-Net's layout."""
    source = folder.parent / "source"
    write_case(source, "case", number)
    for place in (f"images{part}", f"labels{part}"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    shutil.move(source / "images/case.nii.gz", folder / f"images{part}/case_{number}_0000.nii.gz")
    shutil.move(source / "labels/case.nii.gz", folder / f"labels{part}/case_{number}.nii.gz")
    noise = np.random.RandomState(number).normal(0, 1, (14, 18, 16)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(noise, OBLIQUE), folder / f"images{part}/case_{number}_0001.nii.gz")


def test_two_channels_of_a_folder_from_training_to_the_label_map(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = tmp_path / "Dataset001_Two"
    for number in range(4):
        write_channels(data, "Tr" if number < 3 else "Ts", number)
    labels = {"background": 0, "large": 1, "small": 2}
    content = {"channel_names": {"0": "T1", "1": "noise"}, "labels": labels, "numTraining": 3, "file_ending": ".nii.gz"}
    (data / "dataset.json").write_text(json.dumps(content))
    published = write_published(tmp_path / "resnet_10.pth", redraw(10, "B"))
    options = {"data_root": str(data), "img_list": str(data), "n_seg_classes": 3, "in_channels": 2}
    small = {"n_epochs": 1, "patch_size": [16, 16, 8], "pretrain_path": str(published)}
    training = workflow(folder, "train", "train", "patch", **options, **small)
    training.run_id = "training"
    training.run()
    assert "channels of the images: T1, noise" in caplog.text
    settings = read_settings(folder / "models/model.json")
    assert (settings.class_names, settings.in_channels) == (["background", "large", "small"], 2)
    assert read_tensors(folder / "models/model.pt")["encoder.conv1.weight"].shape[1] == 2
    record = json.loads((folder / "models/cases.json").read_text())
    assert len(record["training"]) == 2  # one is held out: there is no val.txt
    assert all(name.endswith("_0000.nii.gz") for name in record["contents"])

    row = [f"imagesTs/case_3_0000.nii.gz;{data / 'imagesTs/case_3_0001.nii.gz'}", "labelsTs/case_3.nii.gz", "somebody"]
    (data / "test.csv").write_text(f"image,label,patient\n{','.join(row)}\n")
    evaluation = workflow(folder, "train", "train", "evaluate", data_root=str(data), val_list="test.csv")
    evaluation.run_id = "evaluating"
    evaluation.run()
    assert (folder / "eval/metrics.csv").read_text().count("_0000.nii.gz") == 1

    inference = workflow(folder, "inference", "inference", img_list=str(data))
    inference.run_id = "inference"
    inference.run()
    (answer,) = (folder / "predictions").glob("*.nii.gz")
    assert answer.name == "case_3_0000_seg.nii.gz"
    assert nibabel.load(answer).shape == (14, 18, 16)
    np.testing.assert_allclose(nibabel.load(answer).affine, OBLIQUE, atol=1e-6)


def test_label_maps_of_every_format_are_on_its_grid(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("itk")
    pytest.importorskip("pydicom")
    names, affine = ["background", "one", "two"], oblique(SPACING)
    settings = Settings("resnet_10", "unet", "patch", 1, names, [16, 16, 8], spacing=list(SPACING), intensity=INTENSITY)
    (folder / "models").mkdir(exist_ok=True)
    (folder / "models/model.json").write_text(settings.to_json())
    torch.save({}, folder / "models/model.pt")
    voxels, expected = volume()
    scans = tmp_path / "scans"
    scans.mkdir()
    write_metaimage(scans / "a.mha", voxels, affine)
    write_metaimage(scans / "b.mhd", voxels, affine)
    write_nrrd(scans / "c.nrrd", voxels, affine)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), scans / "d.nii.gz")
    for uid in ("1.2.840.1", "1.2.840.2"):
        write_series(scans / uid, voxels, affine, uid)
    found = workflow(folder, "inference", "inference", img_list=str(scans), handlers=[], network=Threshold())
    found.run_id = "inference"
    found.run()
    answers = sorted((folder / "predictions").glob("*.nii.gz"))
    stems = ["1.2.840.1", "1.2.840.2", "a", "b", "c", "d"]
    assert [path.name for path in answers] == [f"{stem}_seg.nii.gz" for stem in stems]
    for path in answers:
        answer = nibabel.load(path)
        np.testing.assert_array_equal(np.asarray(answer.dataobj), expected)
        np.testing.assert_allclose(answer.affine, affine, atol=1e-4)
        assert answer.get_data_dtype() == np.uint8
