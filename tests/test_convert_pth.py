"""The converter of published files, on synthetic ones in the published format."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from published import ROOT, constant, constant_state, empty_net, write_published, write_train_py

from med3d_nets import variants
from med3d_nets.variants import VARIANTS, get_variant
from med3d_nets.weights import file_sha256, load_pretrained, load_strict, read_tensors

TOOL = ROOT / "tools" / "convert_pth.py"
ALLOW = "--allow_digest_mismatch"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("convert_pth", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["convert_pth"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["convert_pth"]


@pytest.fixture
def root(tool, tmp_path, monkeypatch):
    """A project's folder with a bundle of every variant in it, instead of the real one."""
    for row in VARIANTS:
        (tmp_path / "bundles" / row.bundle).mkdir(parents=True)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for path in tmp_path.rglob("*.pt"):
        path.unlink()  # pytest keeps the folders of three runs


@pytest.fixture
def run(tool, root, monkeypatch, capsys):
    """Runs the tool's main with arguments; gives its exit status, output and errors."""

    def run_main(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert_pth.py", *map(str, arguments)])
        status = 0
        try:
            tool.main()
        except SystemExit as error:
            status = error.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_main


@pytest.fixture
def refused(run, root):
    """Runs the tool, asserts that it fails with one line and leaves every file as it is; gives the message."""

    def run_refused(*arguments):
        before = _snapshot(root)
        status, out, err = run(*arguments)
        assert (status, out) == (1, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert _snapshot(root) == before
        return err

    return run_refused


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
    assert _lines(out) == {
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
    lines = _lines(out)
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
    assert _lines(out)["digest"] == "fine-tuned, not a published file"


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
    lines = _lines(out)
    assert lines["variant"] == "resnet_10_23dataset"
    assert lines["digest"] == "known, the published resnet_10_23dataset.pth (stated by 9 sources)"
    target = root / "bundles" / "medicalnet_resnet_10_23dataset" / "models" / "pretrained.pt"
    record = json.loads(target.with_suffix(".json").read_text())
    assert (record["digest"], record["source_sha256"]) == ("known", file_sha256(published))


def test_known_digest_comes_before_the_name(run, root, published):
    published.rename(root / "resnet_10.pth")
    status, out, _ = run("--src", "resnet_10.pth", "--dst", "a.pt")
    assert status == 0
    assert _lines(out)["variant"] == "resnet_10_23dataset"


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
    assert _lines(out)["variant"] == "resnet_10_23dataset"


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


# Defective files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer3.0.bn2.running_mean": None}, "1 missing: layer3.0.bn2.running_mean"),
        ({"conv1.weight": None}, "conv1.weight is missing"),
        ({"fc.weight": torch.ones(1)}, "1 not part of the network: fc.weight"),
        ({"bn1.bias": torch.ones(32)}, "1 of another shape: bn1.bias (32,) instead of (64,)"),
        ({"conv1.weight": torch.ones(64, 1, 3, 3, 3)}, "conv1.weight (64, 1, 3, 3, 3) instead of (64, 1, 7, 7, 7)"),
        ({"conv1.weight": torch.ones(7)}, "conv1.weight is of shape (7,)"),
        ({"layer1.1.bn1.bias": torch.ones(1)}, "(2, 1, 1, 1) blocks per stage"),
    ],
)
def test_tensors_that_do_not_fit(refused, root, change, message):
    write_published(root / "resnet_10.pth", _changed(constant_state(10, "B"), change))
    assert message in refused("--src", "resnet_10.pth", ALLOW)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_seg.0.bias": None}, "1 missing: conv_seg.0.bias"),
        ({"conv_seg.6.weight": None}, "1 missing: conv_seg.6.weight"),
        ({"conv_seg.7.bias": torch.ones(1)}, "1 not part of the network: conv_seg.7.bias"),
        ({"conv_seg.3.weight": torch.ones(2)}, "1 of another shape: conv_seg.3.weight (2,) instead of (32, 32, 3, 3"),
        ({"conv_seg.6.weight": torch.ones(())}, "1 of another shape: conv_seg.6.weight () instead of (2, 32, 1, 1, 1)"),
        ({"conv_seg.6.weight": torch.ones(1, 32, 1, 1, 1)}, "n_seg_classes counts the background too"),
    ],
)
def test_head_that_does_not_fit(refused, root, change, message):
    write_train_py(root / "resnet_10.pth", _changed(constant_state(10, "B", 2), change))
    assert message in refused("--src", "resnet_10.pth")


def test_truncated_file(refused, root):
    path = write_published(root / "resnet_10.pth", constant_state(10, "B"))
    path.write_bytes(path.read_bytes()[:-1000])
    assert "resnet_10.pth: truncated or damaged" in refused("--src", path.name, ALLOW)


def test_no_file(refused):
    assert refused("--src", "resnet_10.pth") == "error: resnet_10.pth: no such file\n"


# Destination


def test_no_bundle(refused, root):
    write_published(root / "resnet_10.pth", constant_state(10, "B"))
    folder = root / "bundles" / "medicalnet_resnet_10"
    folder.rmdir()
    message = refused("--src", "resnet_10.pth", ALLOW)
    assert f"{folder}: no such bundle to write to" in message
    assert "--dst" in message


@pytest.mark.parametrize("existing", ["pretrained.pt", "pretrained.json"])
def test_existing_file(refused, run, root, existing):
    write_published(root / "resnet_10.pth", constant_state(10, "B"))
    folder = root / "bundles" / "medicalnet_resnet_10" / "models"
    folder.mkdir()
    (folder / existing).write_text("old")
    message = refused("--src", "resnet_10.pth", ALLOW)
    assert f"{folder / existing}: exists already" in message
    assert "--overwrite" in message
    assert run("--src", "resnet_10.pth", ALLOW, "--overwrite")[0] == 0
    assert sorted(os.listdir(folder)) == ["pretrained.json", "pretrained.pt"]
    assert len(read_tensors(folder / "pretrained.pt")) == 72


@pytest.mark.parametrize(
    ("dst", "message"),
    [
        ("bundles", "--dst names the file of tensors, such as pretrained.pt, got bundles"),
        ("a.json", "--dst names the file of tensors, such as pretrained.pt, got a.json"),
        ("resnet_10.pth", "resnet_10.pth: source and destination are the same file"),
        ("resnet_10.pth/a.pt", "File exists: 'resnet_10.pth'"),
    ],
)
def test_bad_destination(refused, root, dst, message):
    write_published(root / "resnet_10.pth", constant_state(10, "B"))
    assert message in refused("--src", "resnet_10.pth", ALLOW, "--overwrite", "--dst", dst)


# The command


@pytest.mark.parametrize("wrong", [("--ovewrite",), ("--destination", "a.pt"), ("--dst", "a.pt", "b.pt")])
def test_misspelt_option_is_no_conversion(run, root, wrong):
    write_published(root / "resnet_10.pth", constant_state(10, "B"))
    before = _snapshot(root)
    status, _, err = run("--src", "resnet_10.pth", ALLOW, *wrong)
    assert status == 2
    assert "Could not consume arg" in err
    assert _snapshot(root) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--overwrite", "no"), "--overwrite takes no value, but got 'no'"),
        ((ALLOW, "a.pt"), "--allow_digest_mismatch takes no value, but got 'a.pt'"),
        (("--dst",), "--dst takes a value, but stands alone"),
        (("--variant", ALLOW), "--variant takes a value, but stands alone"),
    ],
)
def test_option_with_and_without_value(refused, root, arguments, message):
    write_published(root / "resnet_10.pth", constant_state(10, "B"))
    assert refused("--src", "resnet_10.pth", *arguments) == f"error: {message}\n"


def test_error_of_the_program_keeps_its_traceback(tool, run, root, monkeypatch):
    def fail(path):
        raise KeyError(path)

    monkeypatch.setattr(tool.weights, "read_tensors", fail)
    with pytest.raises(KeyError):
        run("--src", "a.pth")


def test_command_converts(tmp_path):
    write_published(tmp_path / "resnet_10.pth", constant_state(10, "B"))
    done = _command(tmp_path, "--src", "resnet_10.pth", "--dst", "out.pt", ALLOW)
    assert (done.returncode, done.stderr) == (0, "")
    assert _lines(done.stdout)["written"] == "out.pt"
    assert len(read_tensors(tmp_path / "out.pt")) == 72
    (tmp_path / "out.pt").unlink()


def test_command_fails(tmp_path):
    source = write_published(tmp_path / "resnet_10.pth", constant_state(10, "B"))
    done = _command(tmp_path, "--src", "resnet_10.pth", "--dst", "out.pt")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        f"error: resnet_10.pth: not the published resnet_10.pth. Its SHA-256 is {file_sha256(source)}"
    )
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["resnet_10.pth"]


def test_command_on_a_full_disk(tmp_path):
    """A limit on the size of files stands for the disk."""
    write_published(tmp_path / "resnet_10.pth", constant_state(10, "B"))
    (tmp_path / "out.pt").write_text("old")
    arguments = ["--src", "resnet_10.pth", "--dst", "out.pt", ALLOW, "--overwrite"]
    code = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)); "
        f"sys.argv = {['convert_pth.py', *arguments]!r}; runpy.run_path({str(TOOL)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: no space left on the disk while writing out.pt (File too large)\n"
    assert (tmp_path / "out.pt").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["out.pt", "resnet_10.pth"]


def _command(folder, *arguments):
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def _set_digest(monkeypatch, name, sha256):
    rows = tuple(dataclasses.replace(row, sha256=sha256) if row.name == name else row for row in VARIANTS)
    monkeypatch.setattr(variants, "VARIANTS", rows)


def _snapshot(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def _lines(report):
    """The report as a dictionary, with its values aligned."""
    pairs = [line.partition(":") for line in report.splitlines()]
    assert (
        len({len(line) - len(rest.lstrip()) for line, (_, _, rest) in zip(report.splitlines(), pairs, strict=True)})
        == 1
    )
    return {name: rest.strip() for name, _, rest in pairs}


def _stated_by(row):
    return f"stated by {row.sha256_sources} source{'s' if row.sha256_sources > 1 else ''}"


def _changed(state, change):
    return {name: value for name, value in {**state, **change}.items() if value is not None}
