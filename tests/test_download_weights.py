"""The command that fetches and imports published files, and MONAI's own on ``large_files.yml``."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from published import ROOT, constant_state, write_published
from servers import Reply, serve

from med3d_nets import variants
from med3d_nets.variants import VARIANTS, get_variant
from med3d_nets.weights import file_sha256, read_tensors

TOOLS = ROOT / "tools"
SMALL = ("resnet_10", "resnet_10_23dataset", "resnet_18")


def _load(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tool():
    before = {name: sys.modules.pop(name, None) for name in ("convert_pth", "download_weights")}
    sys.path.insert(0, str(TOOLS))  # as it is for a script there
    yield _load("download_weights")
    sys.path.remove(str(TOOLS))
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Synthetic published files of three variants, by name; their bytes differ."""
    folder = tmp_path_factory.mktemp("published")
    files = {}
    for name in SMALL:
        row = get_variant(name)
        state = constant_state(row.depth, row.shortcut)
        state["bn1.weight"] = torch.full((64,), float(row.datasets))
        files[name] = write_published(folder / row.filename, state)
    return files


@pytest.fixture
def rows(published, monkeypatch):
    """The table, with the digests of the synthetic files."""
    changed = tuple(
        dataclasses.replace(row, sha256=file_sha256(published[row.name])) if row.name in published else row
        for row in VARIANTS
    )
    monkeypatch.setattr(variants, "VARIANTS", changed)
    return {row.name: row for row in changed}


@pytest.fixture
def root(tool, tmp_path, monkeypatch):
    """A project's folder with a bundle of every variant in it, instead of the real one."""
    folder = tmp_path / "a project"
    for row in VARIANTS:
        (folder / "bundles" / row.bundle).mkdir(parents=True)
    monkeypatch.setattr(tool, "ROOT", folder)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    for path in tmp_path.rglob("*.pt"):
        path.unlink()  # pytest keeps the folders of three runs


@pytest.fixture
def server(published):
    with serve({f"/{file.name}": file.read_bytes() for file in published.values()}) as running:
        yield running


@pytest.fixture
def run(tool, root, rows, monkeypatch, capsys):
    """Runs the tool's main with arguments; gives its exit status, output and errors."""

    def run_main(*arguments):
        monkeypatch.setattr(sys, "argv", ["download_weights.py", *map(str, arguments)])
        status = 0
        try:
            tool.main()
        except SystemExit as error:
            status = error.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_main


def _models(root, name):
    return root / "bundles" / f"medicalnet_{name}" / "models"


def _left(root):
    """All files in the bundles, below them."""
    folder = root / "bundles"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _outcome(name, *extra):
    return sorted(f"medicalnet_{name}/models/{file}" for file in ("pretrained.json", "pretrained.pt", *extra))


# What it does


def test_fetches_and_converts(run, root, rows, server):
    status, out, err = run("resnet_10", "resnet_18", "resnet_10", "--source", server.url)
    assert (status, err) == (0, "")
    assert server.paths == ["/resnet_10.pth", "/resnet_18.pth"]
    assert _left(root) == sorted(_outcome("resnet_10") + _outcome("resnet_18"))
    for name in ("resnet_10", "resnet_18"):
        record = json.loads((_models(root, name) / "pretrained.json").read_text())
        assert (record["variant"], record["digest"]) == (name, "known")
        assert record["source_sha256"] == rows[name].sha256
        assert record["sha256"] == file_sha256(_models(root, name) / "pretrained.pt")
        assert len(read_tensors(_models(root, name) / "pretrained.pt")) == rows[name].encoder_tensors
    lines = out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"resnet_10: {_models(root, 'resnet_10') / 'resnet_10.pth'} (")
    assert lines[0].endswith(
        "MB) fetched, its digest is the published one; converted to pretrained.pt; resnet_10.pth removed"
    )


def test_all(run, tool, root, server, monkeypatch):
    """All names of the table, each once; here the table has the three small ones."""
    monkeypatch.setattr(variants, "VARIANTS", tuple(row for row in variants.VARIANTS if row.name in SMALL))
    status, out, _ = run("resnet_18", "all", "--source", server.url)
    assert status == 0
    assert server.paths == ["/resnet_18.pth", "/resnet_10.pth", "/resnet_10_23dataset.pth"]
    assert _left(root) == sorted(path for name in SMALL for path in _outcome(name))
    assert len(out.splitlines()) == 3


def test_again_does_nothing(run, root, server):
    assert run("resnet_10", "--source", server.url)[0] == 0
    pretrained = _models(root, "resnet_10") / "pretrained.pt"
    written = pretrained.stat()
    server.requests.clear()
    for arguments in ((), ("--overwrite",)):
        status, out, err = run("resnet_10", "--source", server.url, *arguments)
        assert (status, err) == (0, "")
        assert out == f"resnet_10: {pretrained} is there already, from the published resnet_10.pth\n"
    assert server.requests == []
    assert (pretrained.stat().st_mtime_ns, pretrained.stat().st_ino) == (written.st_mtime_ns, written.st_ino)


def test_keep_pth(run, root, published, server):
    """Also once ``pretrained.pt`` is there: then the file alone is fetched."""
    for _ in range(2):
        status, out, err = run("resnet_10", "--source", server.url, "--keep_pth")
        assert (status, err) == (0, "")
        assert _left(root) == _outcome("resnet_10", "resnet_10.pth")
    assert "resnet_10.pth (" in out
    assert "was there already" in out
    assert "converted" not in out
    (_models(root, "resnet_10") / "resnet_10.pth").unlink()
    assert run("resnet_10", "--source", server.url, "--keep_pth")[0] == 0
    assert (_models(root, "resnet_10") / "resnet_10.pth").read_bytes() == published["resnet_10"].read_bytes()
    assert len(server.requests) == 2


def test_no_convert(run, root, server):
    status, out, err = run("resnet_10", "--source", server.url, "--no_convert")
    assert (status, err) == (0, "")
    assert _left(root) == ["medicalnet_resnet_10/models/resnet_10.pth"]
    assert out.endswith("fetched, its digest is the published one\n")


def test_pth_that_was_there_is_used_and_stays(run, root, published, server):
    """As ``monai.bundle download_large_files`` leaves it."""
    _models(root, "resnet_10").mkdir()
    shutil.copy(published["resnet_10"], _models(root, "resnet_10"))
    status, out, err = run("resnet_10", "--source", server.url)
    assert (status, err, server.requests) == (0, "", [])
    assert _left(root) == _outcome("resnet_10", "resnet_10.pth")
    assert "was there already, its digest is the published one; converted to pretrained.pt\n" in out


def test_from_a_folder(run, root, published, tmp_path, monkeypatch):
    (tmp_path / "usb stick").mkdir()
    shutil.copy(published["resnet_10"], tmp_path / "usb stick")
    monkeypatch.chdir(tmp_path)
    assert run("resnet_10", "--source", "usb stick")[0] == 0
    assert _left(root) == _outcome("resnet_10")
    assert os.listdir(tmp_path / "usb stick") == ["resnet_10.pth"]


def test_broken_download_goes_on_in_the_next_run(run, tool, root, server, monkeypatch):
    monkeypatch.setattr("med3d_nets.download.PAUSE", 0.001)
    server.replies.extend([Reply(cut_after=1000)] + [Reply(status=503)] * 4)
    status, _, err = run("resnet_10", "--source", server.url)
    part = _models(root, "resnet_10") / "resnet_10.pth.part"
    assert status == 1
    assert f"{part} keeps 1,000 bytes, and the same command goes on from there" in err
    server.requests.clear()
    assert run("resnet_10", "--source", server.url)[0] == 0
    assert server.ranges == ["bytes=1000-"]
    assert _left(root) == _outcome("resnet_10")


# What it refuses


def test_one_failure_among_several(run, root, rows, server):
    server.files["/resnet_10_23dataset.pth"] = b"another"
    status, out, err = run(*SMALL, "--source", server.url)
    assert status == 1
    assert [line.split(": ")[0] for line in out.splitlines()] == list(SMALL)
    assert out.splitlines()[1] == "resnet_10_23dataset: failed"
    lines = err.splitlines()
    assert lines[0] == "error: 1 of 3 variants failed:"
    assert lines[1].startswith(f"  resnet_10_23dataset: {server.url}/resnet_10_23dataset.pth: not the published")
    assert rows["resnet_10_23dataset"].sha256 in lines[1]
    assert len(lines) == 2
    assert _left(root) == sorted(_outcome("resnet_10") + _outcome("resnet_18"))


def test_all_failures_are_listed(run, root, tmp_path):
    status, out, err = run("resnet_10", "resnet_18", "--source", tmp_path)
    assert status == 1
    assert "error: 2 of 2 variants failed:\n  resnet_10: resnet_10.pth is not in the folder" in err
    assert "\n  resnet_18: resnet_18.pth is not in the folder" in err
    assert out == "resnet_10: failed\nresnet_18: failed\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name the variants to fetch, or all. Known are: resnet_10, resnet_10_23dataset, "),
        (("resnet_10", "resnet_11", "resnet10"), "no variant 'resnet_11'; did you mean"),
        (("resnet_10", "resnet_11", "resnet10"), "; no variant 'resnet10'; did you mean 'resnet_10'?"),
        (("resnet_10", 50), "no variant '50'"),
        (("--overwrite", "resnet_10"), "--overwrite takes no value, but got 'resnet_10'; name the variants before"),
        (("resnet_10", "--keep_pth", "no"), "--keep_pth takes no value, but got 'no'"),
        (("resnet_10", "--no_convert", "1"), "--no_convert takes no value, but got 1"),
    ],
)
def test_nothing_is_fetched_for_a_wrong_word(run, root, server, arguments, message):
    status, out, err = run(*arguments, "--source", server.url)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert (server.requests, _left(root)) == ([], [])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (("--source",), "--source takes an address or a folder, but stands alone"),
        (("--source", "nowhere"), "nowhere: no such folder"),
        (("--source", "ftp://host"), "ftp://host: begins with ftp:, expected https:// or http://"),
    ],
)
def test_wrong_source(run, root, source, message):
    """It is one error, not one for each variant."""
    status, out, err = run("resnet_10", "resnet_18", *source)
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {message}")


@pytest.mark.parametrize("option", ["--allow_digest_mismatch", "--ovewrite"])
def test_unknown_option_fetches_nothing(run, root, server, option):
    status, _, err = run("resnet_10", "--source", server.url, option)
    assert status == 2
    assert "Could not consume arg" in err
    assert (server.requests, _left(root)) == ([], [])


def test_missing_bundle(run, root, server):
    bundle = root / "bundles" / "medicalnet_resnet_18"
    bundle.rmdir()
    status, _, err = run("resnet_10", "resnet_18", "--source", server.url)
    assert (status, err) == (1, f"error: {bundle}: no such bundle\n")
    assert server.requests == []


@pytest.mark.parametrize("existing", ["pretrained.pt", "pretrained.json"])
def test_pretrained_of_another_origin(run, root, server, existing):
    """It is refused before the download, and replaced only when that is asked for."""
    folder = _models(root, "resnet_10")
    folder.mkdir()
    (folder / existing).write_text('{"sha256": "old", "source_sha256": "old"}')
    status, _, err = run("resnet_10", "--source", server.url)
    assert status == 1
    assert f"{folder / existing}: exists already and was not made from the published resnet_10.pth" in err
    assert (server.requests, os.listdir(folder)) == ([], [existing])
    assert run("resnet_10", "--source", server.url, "--no_convert")[0] == 0
    assert run("resnet_10", "--source", server.url, "--overwrite")[0] == 0
    assert len(read_tensors(folder / "pretrained.pt")) == 72
    assert "old" not in (folder / "pretrained.json").read_text()


def test_damaged_pretrained(run, root, server):
    """Its record names the published file, but it is not what was written."""
    assert run("resnet_10", "--source", server.url)[0] == 0
    pretrained = _models(root, "resnet_10") / "pretrained.pt"
    with pretrained.open("ab") as file:
        file.write(b"x")
    status, _, err = run("resnet_10", "--source", server.url)
    assert status == 1
    assert "or is damaged; replace it with --overwrite" in err
    assert run("resnet_10", "--source", server.url, "--overwrite")[0] == 0
    assert len(read_tensors(pretrained)) == 72


def test_conversion_that_fails_keeps_the_download(run, tool, root, server, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device", "pretrained.pt")

    monkeypatch.setattr(tool.convert_pth, "convert", fail)
    status, _, err = run("resnet_10", "--source", server.url)
    assert status == 1
    assert "resnet_10: no space left on the disk while writing pretrained.pt" in err
    assert _left(root) == ["medicalnet_resnet_10/models/resnet_10.pth"]


def test_error_of_the_program_keeps_its_traceback(run, tool, monkeypatch):
    def fail(*arguments, **options):
        raise KeyError("x")

    monkeypatch.setattr(tool.download, "fetch", fail)
    with pytest.raises(KeyError):
        run("resnet_10")


def test_interruption(run, tool, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool.download, "fetch", interrupt)
    assert run("resnet_10") == (130, "", "\ninterrupted\n")


def test_as_a_command(tmp_path):
    done = subprocess.run(
        [sys.executable, str(TOOLS / "download_weights.py"), "resnet_10", "resnet_12"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: no variant 'resnet_12'; did you mean 'resnet_152'?\n"


# MONAI's own command


@pytest.fixture
def bundle(root, rows, server):
    """``medicalnet_resnet_10`` with a space in its name, whose ``large_files.yml`` names the server."""
    folder = root / "my bundles" / "medicalnet_resnet_10 copy"
    shutil.copytree(ROOT / "bundles" / "medicalnet_resnet_10", folder, ignore=shutil.ignore_patterns("models", "eval"))
    text = _large_files(rows["resnet_10"])
    hub = "https://huggingface.co/TencentMedicalNet/MedicalNet-Resnet10/resolve/main"
    assert hub in text
    (folder / "large_files.yml").write_text(text.replace(hub, server.url))
    return folder


@pytest.fixture
def monai_bundle(monkeypatch):
    """``python -m monai.bundle`` in this process, which has imported MONAI already."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["monai.bundle", *map(str, arguments)])
        runpy.run_module("monai.bundle", run_name="__main__")

    return call


def _large_files(row):
    render = _load("render_bundles")
    try:
        return render.fill((TOOLS / "templates" / "large_files.yml").read_text(), render.facts(row))
    finally:
        del sys.modules["render_bundles"]


@pytest.mark.parametrize("row", VARIANTS, ids=lambda row: row.name)
def test_large_files_of_every_variant(row):
    text = _large_files(row)
    assert yaml.safe_load(text) == {
        "large_files": [
            {
                "path": f"models/{row.name}.pth",
                "url": f"https://huggingface.co/{row.hub_repo}/resolve/main/{row.name}.pth",
                "hash_val": row.sha256,
                "hash_type": "sha256",
            }
        ]
    }
    assert "[[" not in text


def test_monai_fetches_and_ours_imports(monai_bundle, run, root, bundle, published, server, monkeypatch):
    monai_bundle("download_large_files", "--bundle_path", bundle)
    file = bundle / "models" / "resnet_10.pth"
    assert file.read_bytes() == published["resnet_10"].read_bytes()
    assert server.paths == ["/resnet_10.pth"]
    convert = sys.modules["convert_pth"]
    convert.convert(str(file), dst=str(bundle / "models" / "pretrained.pt"))
    record = json.loads((bundle / "models" / "pretrained.json").read_text())
    assert (record["variant"], record["digest"]) == ("resnet_10", "known")
    assert len(read_tensors(bundle / "models" / "pretrained.pt")) == 72


@pytest.mark.slow
def test_monai_in_the_bundles_folder(bundle, published):
    """As a user does it, with nothing but the working directory to tell which bundle."""
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "download_large_files"],
        cwd=bundle,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (bundle / "models" / "resnet_10.pth").read_bytes() == published["resnet_10"].read_bytes()


def test_monai_refuses_a_wrong_digest(monai_bundle, bundle, server):
    before = sorted(bundle.rglob("*"))
    server.files["/resnet_10.pth"] = b"another"
    with pytest.raises(ValueError, match="sha256 hash check of downloaded file failed"):
        monai_bundle("download_large_files", "--bundle_path", bundle)
    assert sorted(bundle.rglob("*")) == before


def test_monai_refuses_a_broken_download(monai_bundle, bundle, server):
    before = sorted(bundle.rglob("*"))
    server.replies.append(Reply(cut_after=1000))
    with pytest.raises(OSError, match="retrieval incomplete"):
        monai_bundle("download_large_files", "--bundle_path", bundle)
    assert sorted(bundle.rglob("*")) == before
