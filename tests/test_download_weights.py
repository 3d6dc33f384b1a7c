"""The command that fetches and imports published files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from downloader import SMALL, TOOLS
from downloader import published as published
from downloader import root as root
from downloader import rows as rows
from downloader import run as run
from downloader import server as server
from downloader import tool as tool
from servers import Reply

from med3d_nets import variants
from med3d_nets.weights import file_sha256, read_tensors


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
