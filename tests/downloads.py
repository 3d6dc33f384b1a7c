"""Downloads of a made-up published file from a server on loopback: fixtures, which a module imports by name."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random

import pytest
from servers import serve

from med3d_nets.download import fetch
from med3d_nets.errors import Med3dError
from med3d_nets.variants import get_variant

CONTENT = random.Random(10).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ROW = dataclasses.replace(get_variant("resnet_10_23dataset"), sha256=SHA256)
NAME = ROW.filename
BELOW_HUB = f"/TencentMedicalNet/MedicalNet-Resnet10/resolve/main/{NAME}"
OTHER = b"something else"
OTHER_SHA256 = hashlib.sha256(OTHER).hexdigest()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """Whatever proxy this computer uses, loopback is reached without."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server():
    with serve({f"/{NAME}": CONTENT}) as running:
        yield running


@pytest.fixture
def pauses():
    return []


@pytest.fixture
def get(tmp_path, server, pauses):
    """Fetches into ``tmp_path/models`` from the server, with pauses that are counted and not waited for."""

    def call(row=ROW, source=server.url, **options):
        options = {"timeout": 5.0, "pause": pauses.append, **options}
        return fetch(row, tmp_path / "models", source, **options)

    return call


@pytest.fixture
def models(tmp_path):
    return tmp_path / "models"


@pytest.fixture
def refused(get):
    def call(*arguments, **options):
        with pytest.raises(Med3dError) as caught:
            get(*arguments, **options)
        return str(caught.value)

    return call


def left(folder):
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def put(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path
