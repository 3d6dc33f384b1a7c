"""CSV tables of segmentation cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_sources import problems_of, read


def write(root: Path, *lines: str) -> Path:
    path = root / "cases.csv"
    path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def cases(root: Path, *lines: str, **options: Any) -> list[dict[str, Any]]:
    return read(write(root, *lines), root, **options).training


def test_columns_in_any_order_and_case(tmp_path: Path) -> None:
    found = cases(tmp_path, "Age,Label,PATIENT,Image,fold", '71,l.nii,p 1,"my, a.nii",2', "", "60,l.nii,,/b.nii,")
    label = str(tmp_path / "l.nii")
    assert found == [
        {"image": str(tmp_path / "my, a.nii"), "label": label, "patient": "p 1", "fold": 2},
        {"image": "/b.nii", "label": label},
    ]


def test_channels_in_columns_or_in_one(tmp_path: Path) -> None:
    expected = [{"image": [str(tmp_path / f"{name}.nii") for name in "abc"], "label": str(tmp_path / "l.nii")}]
    assert cases(tmp_path, "image_0,image_2,label,image_1", "a.nii,c.nii,l.nii,b.nii") == expected
    assert cases(tmp_path, "image,label", "a.nii; b.nii;c.nii,l.nii") == expected
    assert cases(tmp_path, "image_0,label", "a.nii,l.nii")[0]["image"] == str(tmp_path / "a.nii")


def test_parts(tmp_path: Path) -> None:
    lines = [f"{split}.nii,l.nii,{split}" for split in ("train", "Val", "validation", "training", "valid")]
    source = read(write(tmp_path, "image,label,split", *lines, "t.nii,,test"), tmp_path)
    names = [[Path(case["image"]).stem for case in part] for part in (source.training, source.validation, source.test)]
    assert names == [["train", "training"], ["Val", "validation", "valid"], ["t"]]
    assert source.test == [{"image": str(tmp_path / "t.nii")}]


def test_labels_are_left_alone_where_they_are_not_asked_for(tmp_path: Path) -> None:
    assert cases(tmp_path, "image,label", "a.nii,", labelled=False) == [{"image": str(tmp_path / "a.nii")}]
    assert cases(tmp_path, "image", "a.nii", labelled=False) == [{"image": str(tmp_path / "a.nii")}]


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        ([], ["found nothing in it; expected a header"]),
        (["file,label", "a,b"], ["found columns file, label; expected 'image', or image_0 and on"]),
        (["image;label", "a;b"], ["found columns image;label; expected 'image'", "expected 'label'"]),
        (["image,image_0,label", "a,b,c"], ["expected 'image', or image_0 and on"]),
        (["image_1,label", "a,b"], ["expected all from image_0 to image_1"]),
        (["image,label,Label", "a,b,c"], ["found columns image, label, label; expected label once"]),
        (["image", "a"], ["expected 'label' among them"]),
        (["image,label", "a,b", "a,b,c"], ["line 3: found 3 values; expected 2, as in the header"]),
        (["image,label", '"a,b'], ["line 2: found unexpected end of data; expected values"]),
        (["image,label", ",b", "a;,b"], ["line 2: found no path in image", "line 3: found no path in image"]),
        (["image_0,image_1,label", "a,,b"], ["line 2: found no path in image_0, image_1"]),
        (["image,label", "a,"], ["line 2: found no label; expected a path"]),
        (
            ["image,label,split", "a,b,dev", "a,b,"],
            ["line 2: found split 'dev'; expected train", "line 3: found split ''"],
        ),
        (
            ["image,label,fold", "a,b,x", "a,b,-1"],
            ["line 2: found fold 'x'; expected a whole", "line 3: found fold '-1'"],
        ),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path: Path, lines: list[str], parts: list[str]) -> None:
    problems = problems_of(write(tmp_path, *lines), tmp_path)
    assert len(problems) == len(parts)
    assert all(part in problem for part, problem in zip(parts, problems, strict=True))
    assert all(problem.startswith(f"{tmp_path}/cases.csv") for problem in problems)


def test_a_missing_folder_is_one_problem(tmp_path: Path) -> None:
    path = write(tmp_path, "image,label", "a,b", "c,d")
    (problem,) = problems_of(path, tmp_path / "typo")
    assert "data_root" in problem
    assert problems_of(write(tmp_path, "image,label", "/a,/b"), tmp_path / "typo") == []
