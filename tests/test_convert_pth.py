"""The converter of published files, on synthetic ones in the published format."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch
from converter import ALLOW, read_report
from converter import refused as refused
from converter import root as root
from converter import run as run
from converter import tool as tool
from published import constant, constant_state, empty_net, write_published, write_train_py

from med3d_nets import variants
from med3d_nets.variants import VARIANTS, get_variant
from med3d_nets.weights import file_sha256, load_pretrained, load_strict, read_tensors

# Conversion


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.depth > 50 else []) for row in VARIANTS],
)
def test_every_variant(run, root, row):
    source = write_published(root / row.filename, constant_state(row.depth, row.shortcut))
    digest = file_sha256(source)
    status, out, err = run("--src", row.filename, ALLOW)
    assert (status, err) == (0, "")
    target = root / "bundles" / row.bundle / "models" / "pretrained.pt"
    assert read_report(out) == {
        "file": row.filename,
        "variant": row.name,
        "depth": str(row.depth),
        "shortcut": row.shortcut,
        "data sets": str(row.datasets),
        "tensors": f"{row.encoder_tensors} encoder, 0 head",
        "values": f"{row.encoder_values:,}",
        "sha256": digest,
        "digest": f"unknown (the published {row.filename} has {row.sha256}, {_stated_by(row)})",
        "written": str(target),
    }
    assert json.loads(target.with_suffix(".json").read_text()) == {
        "variant": row.name,
        "source": row.filename,
        "source_sha256": digest,
        "digest": "unknown",
        "tensors": row.encoder_tensors,
        "values": row.encoder_values,
        "sha256": file_sha256(target),
    }
    net = empty_net(row.depth, row.shortcut)
    load_strict(net.encoder, torch.load(target, weights_only=True), target)
    assert all((value == value.new_tensor(constant(name))).all() for name, value in net.encoder.state_dict().items())
    assert load_pretrained(net, str(target), row.name) == {
        "file": "pretrained.pt",
        "sha256": digest,
        "tensors": row.encoder_tensors,
    }


def test_written_tensors_are_plain(run, root):
    """Flat, contiguous, without a larger storage behind them, and readable by everyone who may read the folder."""
    state = constant_state(10, "B")
    state["bn1.weight"] = torch.arange(128.0)[::2]
    write_published(root / "resnet_10.pth", state)
    assert run("resnet_10.pth", ALLOW, "--dst", "new/a.pt")[0] == 0
    written = torch.load(root / "new" / "a.pt", weights_only=True)
    assert list(written) == list(state)
    assert torch.equal(written["bn1.weight"], state["bn1.weight"])
    for value in written.values():
        assert value.is_contiguous()
        assert value.device.type == "cpu"
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()
    assert sorted(os.listdir(root / "new")) == ["a.json", "a.pt"]


def test_same_input_gives_the_same_bytes(run, root):
    write_published(root / "resnet_10.pth", constant_state(10, "B"))
    for name in ("a", "b"):
        assert run("--src", "resnet_10.pth", ALLOW, "--dst", f"{name}.pt")[0] == 0
    assert (root / "a.pt").read_bytes() == (root / "b.pt").read_bytes()
    assert (root / "a.json").read_bytes() == (root / "b.json").read_bytes()


def test_legacy_format_and_names_without_prefix(run, root):
    state = constant_state(10, "B")
    torch.save({"state_dict": state}, root / "resnet_10.pth", _use_new_zipfile_serialization=False)
    assert run("--src", "resnet_10.pth", ALLOW, "--dst", "a.pt")[0] == 0
    assert list(read_tensors(root / "a.pt")) == list(state)


def test_train_py_file_needs_no_override(run, root):
    source = write_train_py(root / "resnet_10_epoch_3_batch_0.pth.tar", constant_state(10, "B", 4, in_channels=2))
    status, out, err = run("--src", source.name, "--variant", "resnet_10_23dataset")
    assert (status, err) == (0, "")
    lines = read_report(out)
    assert lines["variant"] == "resnet_10_23dataset"
    assert lines["digest"] == "fine-tuned, not a published file"
    assert lines["tensors"] == "72 encoder, 14 head"
    target = root / "bundles" / "medicalnet_resnet_10_23dataset" / "models" / "pretrained.pt"
    record = json.loads(target.with_suffix(".json").read_text())
    assert (record["digest"], record["tensors"]) == ("fine-tuned", 86)
    net = empty_net(10, "B", 4, in_channels=2)
    assert load_pretrained(net, str(target), "resnet_10_23dataset")["tensors"] == 86
    for name, value in net.head.state_dict().items():
        assert (value == value.new_tensor(constant(f"conv_seg.{name}"))).all()


def test_train_py_file_with_the_name_of_a_variant(run, root):
    write_train_py(root / "resnet_10.pth", constant_state(10, "B", 2))
    status, out, _ = run("--src", "resnet_10.pth", "--dst", "a.pt")
    assert status == 0
    assert read_report(out)["digest"] == "fine-tuned, not a published file"


def test_file_with_the_names_of_this_project(run, root):
    with torch.device("meta"):
        names = list(empty_net(10, "B").state_dict())
    upstream = constant_state(10, "B", 2)
    torch.save({"model": dict(zip(names, upstream.values(), strict=True))}, root / "checkpoint.pt")
    assert run("--src", "checkpoint.pt", "--variant", "resnet_10", "--dst", "a.pt")[0] == 0
    assert list(read_tensors(root / "a.pt")) == list(upstream)


# Digests and the choice of the variant


@pytest.fixture
def published(root, monkeypatch):
    """A synthetic file ``any.pth`` whose digest the table gives for resnet_10_23dataset."""
    source = write_published(root / "any.pth", constant_state(10, "B"))
    _set_digest(monkeypatch, "resnet_10_23dataset", file_sha256(source))
    return source


def test_known_digest_tells_the_variant(run, root, published):
    status, out, err = run("--src", published.name)
    assert (status, err) == (0, "")
    lines = read_report(out)
    assert lines["variant"] == "resnet_10_23dataset"
    assert lines["digest"] == "known, the published resnet_10_23dataset.pth (stated by 9 sources)"
    target = root / "bundles" / "medicalnet_resnet_10_23dataset" / "models" / "pretrained.pt"
    record = json.loads(target.with_suffix(".json").read_text())
    assert (record["digest"], record["source_sha256"]) == ("known", file_sha256(published))


def test_known_digest_comes_before_the_name(run, root, published):
    published.rename(root / "resnet_10.pth")
    status, out, _ = run("--src", "resnet_10.pth", "--dst", "a.pt")
    assert status == 0
    assert read_report(out)["variant"] == "resnet_10_23dataset"


def test_known_digest_contradicts_the_option(refused, published):
    assert "by its digest this is resnet_10_23dataset, but --variant says resnet_10\n" in refused(
        "--src", published.name, "--variant", "resnet_10"
    )


@pytest.mark.parametrize("arguments", [("resnet_10.pth",), ("other.pth", "--variant", "resnet_10")])
def test_unknown_digest_is_refused(refused, root, arguments):
    source = write_published(root / arguments[0], constant_state(10, "B"))
    message = refused("--src", *arguments)
    assert f"Its SHA-256 is {file_sha256(source)}, the published file's is {get_variant('resnet_10').sha256}" in message
    assert "(stated by 1 source)" in message
    assert ALLOW in message


def test_option_comes_before_the_name(run, root):
    write_published(root / "resnet_10.pth", constant_state(10, "B"))
    status, out, _ = run("--src", "resnet_10.pth", "--variant", "resnet_10_23dataset", ALLOW, "--dst", "a.pt")
    assert status == 0
    assert read_report(out)["variant"] == "resnet_10_23dataset"


def test_only_one_variant_of_that_depth(refused, root):
    """It is found without a name, and its digest is then asked for like any other's."""
    write_published(root / "any.pth", constant_state(101, "B"))
    assert f"not the published resnet_101.pth. Its SHA-256 is {file_sha256(root / 'any.pth')}, " in refused("any.pth")


def test_undecided_variant(refused, root):
    write_published(root / "any.pth", constant_state(18, "A"))
    message = refused("--src", "any.pth", ALLOW)
    assert "depth 18 with shortcut A" in message
    assert message.endswith("Name it with --variant, one of: resnet_18, resnet_18_23dataset\n")


@pytest.mark.parametrize(
    ("depth", "shortcut", "published"),
    [
        (10, "A", "resnet_10, resnet_10_23dataset"),
        (18, "B", "resnet_18, resnet_18_23dataset"),
        (200, "A", "resnet_200"),
    ],
)
def test_unpublished_combination(refused, root, depth, shortcut, published):
    write_published(root / "any.pth", constant_state(depth, shortcut))
    message = refused("--src", "any.pth", ALLOW)
    assert f"a network of depth {depth} with shortcut {shortcut}, of which no weights were published" in message
    assert message.endswith(f"with another shortcut: {published}\n")


@pytest.mark.parametrize(
    ("name", "state", "arguments", "message"),
    [
        ("resnet_10", (10, "A"), (), "of depth 10 with shortcut A, but resnet_10 has depth 10 with shortcut B"),
        ("resnet_18", (34, "A"), (), "of depth 34 with shortcut A, but resnet_18 has depth 18 with shortcut A"),
        ("resnet_50", (50, "B"), ("--variant", "resnet_34"), "of depth 50 with shortcut B, but resnet_34 has depth 34"),
    ],
)
def test_tensors_contradict_the_name(refused, root, name, state, arguments, message):
    write_published(root / f"{name}.pth", constant_state(*state))
    assert message in refused("--src", f"{name}.pth", ALLOW, *arguments)


def test_unknown_variant(refused, root):
    write_published(root / "a.pth", constant_state(10, "B"))
    message = refused("--src", "a.pth", "--variant", "resnet_10_23datasets")
    assert "no variant 'resnet_10_23datasets'; did you mean 'resnet_10_23dataset'?" in message


def _set_digest(monkeypatch, name, sha256):
    rows = tuple(dataclasses.replace(row, sha256=sha256) if row.name == name else row for row in VARIANTS)
    monkeypatch.setattr(variants, "VARIANTS", rows)


def _stated_by(row):
    return f"stated by {row.sha256_sources} source{'s' if row.sha256_sources > 1 else ''}"
