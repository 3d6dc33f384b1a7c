"""The table of published checkpoints."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from published import ROOT

from med3d_nets.variants import VARIANTS, find_variants, get_variant, list_variants


def test_names_say_depth_and_data_sets():
    for row in VARIANTS:
        depth, datasets = re.fullmatch(r"resnet_(\d+)(?:_(\d+)dataset)?", row.name).groups()
        assert (row.depth, row.datasets) == (int(depth), int(datasets or 8))
        assert row.filename == f"{row.name}.pth"
        assert row.hub_repo == f"TencentMedicalNet/MedicalNet-Resnet{depth}"
        assert row.bundle == f"medicalnet_{row.name}"


def test_eleven_different_files():
    assert len(VARIANTS) == len({row.name for row in VARIANTS}) == len({row.sha256 for row in VARIANTS}) == 11
    assert all(re.fullmatch("[0-9a-f]{64}", row.sha256) and row.sha256_sources >= 1 for row in VARIANTS)


def test_shortcut_a_is_for_18_and_34():
    assert {row.depth for row in VARIANTS if row.shortcut == "A"} == {18, 34}
    assert {row.depth for row in VARIANTS if row.shortcut == "B"} == {10, 50, 101, 152, 200}


def test_table_agrees_with_the_facts():
    path = ROOT.parent / "shared" / "facts" / "medicalnet_weights.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    facts = json.loads(path.read_text())
    rows = facts["weights"] if isinstance(facts, dict) else facts
    assert [fact["name"] for fact in rows] == list_variants()
    for fact, row in zip(rows, VARIANTS, strict=True):
        wanted = {key: value for key, value in fact.items() if hasattr(row, key)}
        assert len(wanted) >= 10
        assert {key: getattr(row, key) for key in wanted} == wanted


def test_get_variant():
    assert [get_variant(name) for name in list_variants()] == list(VARIANTS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet_10_23datasets", "no variant 'resnet_10_23datasets'; did you mean 'resnet_10_23dataset'?"),
        ("resnet-50", "no variant 'resnet-50'; did you mean 'resnet_50'?"),
        ("zzz", f"no variant 'zzz'; known are: {', '.join(row.name for row in VARIANTS)}"),
        (10, f"no variant '10'; known are: {', '.join(row.name for row in VARIANTS)}"),
    ],
)
def test_get_variant_suggests_the_nearest(name, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        get_variant(name)


def test_find_variants():
    assert [row.name for row in find_variants(depth=18, shortcut="A")] == ["resnet_18", "resnet_18_23dataset"]
    assert [row.name for row in find_variants(sha256=VARIANTS[1].sha256)] == ["resnet_10_23dataset"]
    assert list(find_variants(sha256=VARIANTS[1].sha256, depth=50)) == []
    assert list(find_variants(depth=10, shortcut="A")) == []
    assert list(find_variants()) == list(VARIANTS)


@pytest.mark.parametrize(("gpu_gb", "batch"), [(1, 0), (2, 0), (3, 1), (24, 8), (80, 29)])
def test_batch_size_leaves_a_fifth_of_the_gpu(gpu_gb, batch):
    row = get_variant("resnet_10")
    assert row.batch_size(gpu_gb) == batch
    assert row.fixed_mb + batch * row.volume_mb <= 800 * gpu_gb < row.fixed_mb + (batch + 1) * row.volume_mb


def test_published_scores_are_of_the_right_experiment():
    """Those of 23 data sets are of another experiment, without classification."""
    for row in VARIANTS:
        assert row.lung_dice[0] < row.lung_dice[1] < 100
        assert (row.nodule_accuracy is None) == (row.datasets == 23)
    assert get_variant("resnet_50").lung_dice == (71.75, 93.31)
    assert get_variant("resnet_50").nodule_accuracy == (84.85, 89.90)
    assert get_variant("resnet_50_23dataset").lung_dice == (52.94, 89.25)


def test_table_needs_the_standard_library_alone():
    """The file itself, since importing the package brings in torch."""
    code = "import runpy, sys; print(len(runpy.run_path('med3d_nets/variants.py')['VARIANTS']), 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "11 False\n"
