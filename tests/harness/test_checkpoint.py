"""Checkpoints: bit-exact, verified, and clear about what does not fit. Resuming is in test_resume.py."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import ToyModel

from harness.checkpoint import MANIFEST, MODEL, CheckpointError, load_weights, save_weights, verify
from harness.runtime import seeded


@pytest.fixture
def model():
    with seeded(1):
        return ToyModel()


def other():
    with seeded(2):
        return ToyModel()


def same(one, another):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), another.parameters(), strict=True))


def test_weights_come_back_bit_equal(model, tmp_path):
    save_weights(model, tmp_path / "c")
    fresh = other()
    assert not same(model, fresh)
    load_weights(tmp_path / "c", fresh)
    assert same(model, fresh)
    assert fresh.head.weight is fresh.embedding.weight
    # a tied tensor is stored once
    assert "head.weight" not in load_file(tmp_path / "c" / MODEL)


def test_saving_again_replaces_the_checkpoint(model, tmp_path):
    save_weights(model, tmp_path / "c")
    fresh = other()
    save_weights(fresh, tmp_path / "c")
    load_weights(tmp_path / "c", model)
    assert same(model, fresh)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


def test_a_save_that_dies_leaves_the_last_checkpoint(model, tmp_path, monkeypatch):
    save_weights(model, tmp_path / "c")

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.checkpoint.write_synced", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(other(), tmp_path / "c")
    fresh = other()
    load_weights(tmp_path / "c", fresh)
    assert same(model, fresh)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_a_file_of_plain_tensors_loads(model, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    fresh = other()
    load_weights(path, fresh)
    assert same(model, fresh)


def test_another_dtype_is_converted(model, tmp_path):
    save_file({name: tensor.double() for name, tensor in model.state_dict().items()}, tmp_path / "w.safetensors")
    fresh = other()
    load_weights(tmp_path / "w.safetensors", fresh)
    assert same(model, fresh)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_is_never_executed(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"embedding.weight": Evil()}, path)
    with pytest.raises(CheckpointError, match="weights_only=True"):
        load_weights(path, ToyModel())
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(CheckpointError, match="weights_only=True"):
        load_weights(path, ToyModel())
    assert "executed" not in capsys.readouterr().out


def misfit(tmp_path, change):
    state = {name: tensor.clone() for name, tensor in ToyModel().state_dict().items()}
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    fresh = other()
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(tmp_path / "w.safetensors", fresh)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items()), "nothing was loaded"
    return str(caught.value)


def test_names_that_do_not_fit_are_listed(tmp_path):
    message = misfit(tmp_path, lambda state: state.update({f"new.{i}": torch.ones(1) for i in range(7)}))
    assert "unexpected  new.0, new.1, new.2, new.3, new.4 and 2 more" in message
    message = misfit(tmp_path, lambda state: state.pop("mixer.weight"))
    assert "missing  mixer.weight" in message
    message = misfit(tmp_path, lambda state: state.update({"mixer.weight": torch.ones(3, 16)}))
    assert "mixer.weight [3, 16] instead of [16, 16]" in message


def test_untied_weights_do_not_go_into_a_tied_model(tmp_path):
    message = misfit(tmp_path, lambda state: state.update({"head.weight": torch.zeros(61, 16)}))
    assert "tied in the model, different in the file  head.weight and embedding.weight" in message


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        load_weights(tmp_path / "none.safetensors", ToyModel())
    for name, content in {"a.safetensors": b"xx", "a.pth": b"xx", "b.pth": b"", "a.bin": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            load_weights(tmp_path / name, ToyModel())
    torch.save({"model": {"x": torch.ones(1)}, "epoch": 3}, tmp_path / "nested.pth")
    with pytest.raises(CheckpointError, match=r"found model, epoch\. Save model\.state_dict\(\)"):
        load_weights(tmp_path / "nested.pth", ToyModel())


@pytest.mark.parametrize("content", ["{", "[]", '{"model.safetensors": 3}'])
def test_a_damaged_manifest_is_a_damaged_checkpoint(model, tmp_path, content):
    save_weights(model, tmp_path / "c")
    verify(tmp_path / "c")
    (tmp_path / "c" / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match="manifest"):
        verify(tmp_path / "c", required=(MODEL,))


def test_a_missing_file_is_damage(model, tmp_path):
    save_weights(model, tmp_path / "c")
    (tmp_path / "c" / MODEL).unlink()
    with pytest.raises(CheckpointError, match="no file"):
        verify(tmp_path / "c")
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        verify(tmp_path)


def test_weights_alone_cannot_resume(model, tmp_path):
    save_weights(model, tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"it has no optimizer\.safetensors"):
        verify(tmp_path / "c", required=(MODEL, "optimizer.safetensors"))
    assert json.loads((tmp_path / "c" / MANIFEST).read_text()).keys() == {MODEL}
