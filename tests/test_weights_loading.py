"""Loading of weights into networks: pretrained and trained ones, and those of something else."""

from __future__ import annotations

import hashlib
import json
import logging

import pytest
import torch
from published import (
    changed,
    constant,
    constant_state,
    empty_net,
    redraw,
    relative_error,
    write_published,
    write_train_py,
)
from torch import nn

from med3d_nets import weights
from med3d_nets.errors import Med3dError, explain
from med3d_nets.networks import create_model
from med3d_nets.weights import (
    file_sha256,
    load_pretrained,
    load_strict,
    load_trained,
    map_names,
    write_atomically,
)


@pytest.fixture(scope="module")
def net():
    """A network of resnet_10 with a head of 2 classes; tests leave it as they found it."""
    net = empty_net(10, "B")
    load_strict(net, map_names(constant_state(10, "B", 2)), "constants")
    return net


@pytest.fixture
def unchanged(net):
    """Asserts, after the test, that the network is as it was before it."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    yield net
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv1.weight": None}, r"1 missing: encoder\.conv1\.weight"),
        ({"layer2.0.bn1.running_var": None}, r"1 missing: encoder\.layer2\.0\.bn1\.running_var"),
        ({"fc.weight": torch.ones(2)}, r"1 not part of the network: fc\.weight"),
        ({"bn1.weight": torch.ones(63)}, r"1 of another shape: encoder\.bn1\.weight \(63,\) instead of \(64,\)"),
        (
            {"bn1.weight": None, "bn1.bias": torch.ones(2, 32), "fc.bias": torch.ones(1)},
            r"1 missing: encoder\.bn1\.weight; 1 not part of the network: fc\.bias; 1 of another shape: encoder",
        ),
    ],
)
def test_load_strict_refuses(unchanged, change, message):
    state = changed(redraw(10, "B", 2), change)
    with pytest.raises(Med3dError, match=f"^file: the tensors do not fit the network; {message}"):
        load_strict(unchanged, map_names(state), "file")


def test_load_strict_shortens_long_lists(unchanged):
    with pytest.raises(Med3dError, match=r"86 missing: encoder\.conv1\.weight, .* and 81 more$"):
        load_strict(unchanged, {}, "file")


def test_load_pretrained_encoder(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = write_published(tmp_path / "resnet_10.pth", constant_state(10, "B"))
    net = create_model("resnet_10", 3)
    head = {name: value.clone() for name, value in net.head.state_dict().items()}
    loaded = load_pretrained(net, str(path), "resnet_10")
    assert loaded == {"file": "resnet_10.pth", "sha256": file_sha256(path), "tensors": 72}
    assert all(torch.equal(value, head[name]) for name, value in net.head.state_dict().items())
    for name, value in net.encoder.state_dict().items():
        assert (value == value.new_tensor(constant(name))).all()
    (line,) = _logged(caplog)
    assert line.startswith(f"{path}: loaded 72 tensors; fresh: the head (14)")


def test_load_pretrained_with_the_same_head(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = write_train_py(tmp_path / "tuned.pth", constant_state(10, "B", 3))
    net = empty_net(10, "B", 3)
    assert load_pretrained(net, str(path), "resnet_10")["tensors"] == 86
    for name, value in net.head.state_dict().items():
        assert (value == value.new_tensor(constant(f"conv_seg.{name}"))).all()
    assert _logged(caplog) == [f"{path}: loaded 86 tensors; fresh: none"]


def test_load_pretrained_with_the_head_of_another_task(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = write_train_py(tmp_path / "tuned.pth", constant_state(10, "B", 5))
    net = create_model("resnet_10", 3)
    head = {name: value.clone() for name, value in net.head.state_dict().items()}
    assert load_pretrained(net, str(path), "resnet_10")["tensors"] == 72
    assert all(torch.equal(value, head[name]) for name, value in net.head.state_dict().items())
    left_out, loaded = _logged(caplog)
    assert left_out.startswith(f"{path}: its head does not fit this network and is left out: head.0.weight, ")
    assert loaded.startswith(f"{path}: loaded 72 tensors; fresh: the head (14)")


def test_load_pretrained_into_more_channels(tmp_path):
    state = redraw(10, "B")
    path = write_published(tmp_path / "resnet_10.pth", state)
    three = create_model("resnet_10", 2, in_channels=3).eval()
    load_pretrained(three, str(path), "resnet_10")
    one = empty_net(10, "B")
    load_strict(one.encoder, state, "redrawn")
    x = torch.rand(1, 1, 20, 16, 24)
    with torch.no_grad():
        for found, expected in zip(three.encoder(x.repeat(1, 3, 1, 1, 1)), one.encoder(x), strict=True):
            assert relative_error(found, expected) < 1e-5


def test_load_pretrained_of_nothing(unchanged, caplog):
    caplog.set_level(logging.INFO)
    assert load_pretrained(unchanged, "", "resnet_10") is None
    assert _logged(caplog) == ["no pretrained weights: training from scratch"]


def test_load_pretrained_tells_where_to_get_a_missing_file(unchanged, tmp_path):
    with pytest.raises(Med3dError, match="no pretrained weights there") as caught:
        load_pretrained(unchanged, str(tmp_path / "pretrained.pt"), "resnet_10_23dataset")
    message = str(caught.value)
    assert "'med3d get resnet_10_23dataset'" in message
    assert "resnet_10_23dataset.pth from https://huggingface.co/TencentMedicalNet/MedicalNet-Resnet10" in message
    assert "--pretrain_path" in message


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ((18, "B", None), "weights of depth 18, but the network has depth 10"),
        ((50, "B", None), "weights of depth 50, but the network has depth 10"),
        ((10, "A", None), "weights of shortcut A, but the network has shortcut B"),
        ((10, "B", None, 3), "the weights are for 3 input channels, the network has 1"),
    ],
)
def test_load_pretrained_of_another_network(unchanged, tmp_path, state, message):
    path = write_published(tmp_path / "a.pth", constant_state(*state))
    with pytest.raises(Med3dError, match=message):
        load_pretrained(unchanged, str(path), "resnet_10")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer4.0.conv2.weight": None}, r"1 missing: encoder\.layer4\.0\.conv2\.weight$"),
        ({"conv1.weight": None}, r"conv1\.weight is missing"),
        ({"conv1.weight": torch.ones(())}, r"conv1\.weight is of shape \(\)"),
        ({"conv1.weight": torch.ones(32, 1, 7, 7, 7)}, r"encoder\.conv1\.weight \(32, 1, 7, 7, 7\) instead of \(64,"),
        ({"fc.weight": torch.ones(1)}, r"1 not part of the network: fc\.weight$"),
        ({"conv_seg.0.bias": None}, r"1 missing: head\.0\.bias$"),
        ({"bn1.weight": torch.ones(65)}, r"encoder\.bn1\.weight \(65,\) instead of \(64,\)$"),
    ],
)
def test_load_pretrained_of_a_defective_file(unchanged, tmp_path, change, message):
    path = write_train_py(tmp_path / "a.pth", changed(redraw(10, "B", 2), change))
    with pytest.raises(Med3dError, match=message):
        load_pretrained(unchanged, str(path), "resnet_10")


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"sha256": "own", "source_sha256": "published"}, True),
        ({"sha256": "of another file", "source_sha256": "published"}, False),
        ({"sha256": "own"}, False),
        (["sha256"], False),
        ("{", False),
        (None, False),
    ],
)
def test_digest_of_the_published_file(tmp_path, record, told):
    path = tmp_path / "pretrained.pt"
    path.write_bytes(b"weights")
    digest = file_sha256(path)
    assert digest == hashlib.sha256(b"weights").hexdigest()
    if record is not None:
        text = record if isinstance(record, str) else json.dumps(record)
        path.with_suffix(".json").write_text(text.replace('"own"', f'"{digest}"'))
    assert weights._published_sha256(str(path)) == ("published" if told else digest)


def test_load_trained(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    state = map_names(constant_state(10, "B", 2))
    write_atomically(tmp_path / "model.pt", state)
    net = empty_net(10, "B")
    load_trained(net, str(tmp_path / "model.pt"))
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert _logged(caplog) == [f"{tmp_path / 'model.pt'}: loaded"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [(None, r"14 missing: head\.0\.weight, "), (3, r"head\.6\.weight \(3, 32, 1, 1, 1\) instead")],
)
def test_load_trained_takes_all_or_nothing(unchanged, tmp_path, classes, message):
    path = write_published(tmp_path / "model.pt", constant_state(10, "B", classes))
    with pytest.raises(Med3dError, match=message):
        load_trained(unchanged, str(path))


def test_error_of_a_missing_file_is_shown_as_it_is(tmp_path):
    with pytest.raises(Med3dError) as caught:
        load_trained(nn.Identity(), str(tmp_path / "model.pt"))
    assert explain(caught.value, {}) is caught.value


def _logged(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "med3d_nets.weights"]
