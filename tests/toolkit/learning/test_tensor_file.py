"""Tensors of a run folder in files."""

from pathlib import Path

import torch

from p4q_edge.learning import read_tensors, write_tensors


def test_the_same_contents_give_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"weight": torch.arange(6.0).reshape(2, 3).T, "scale": torch.tensor(0.5), "none": torch.zeros(0, 4)}
    facts = {str(number): str(number) for number in range(20)}
    one, other = tmp_path / "one", tmp_path / "other"
    write_tensors(one, tensors, key="made of", metadata=facts)
    write_tensors(other, dict(reversed(tensors.items())), key="made of", metadata=dict(reversed(facts.items())))
    assert one.read_bytes() == other.read_bytes()
    found = read_tensors(one, key="made of")
    assert found is not None
    read, metadata = found
    assert metadata == {**facts, "key": "made of"}
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) and read[name].shape == tensor.shape for name, tensor in tensors.items())
