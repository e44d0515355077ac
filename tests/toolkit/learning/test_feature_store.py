"""The feature store: what is missing, what is damaged, and that nothing of another run is taken."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from p4q_edge.learning.feature_store import SHARD_IMAGES, FeatureStore, HeldFeatures, shards
from p4q_edge.runtime.errors import CorruptArtifactError, UsageError

IMAGES = 2 * SHARD_IMAGES + 44
ALL = [range(SHARD_IMAGES), range(SHARD_IMAGES, 2 * SHARD_IMAGES), range(2 * SHARD_IMAGES, IMAGES)]


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(2, IMAGES, 5, generator=torch.Generator().manual_seed(0))


def store_at(folder: Path, key: str = "a" * 64, **changes: int) -> FeatureStore:
    return FeatureStore(folder=folder, name="student", key=key, **({"views": 2, "images": IMAGES} | changes))


def filled(folder: Path, rows: Tensor, key: str = "a" * 64) -> FeatureStore:
    store = store_at(folder, key)
    for shard in store.missing():
        store.write(shard.start, rows[:, shard.start : shard.stop])
    return store


def test_shards_share_out_the_images() -> None:
    assert shards(IMAGES) == ALL
    assert shards(SHARD_IMAGES) == ALL[:1]


def test_what_was_written_is_read_and_nothing_is_missing(tmp_path: Path, rows: Tensor) -> None:
    store = store_at(tmp_path)
    assert store.missing() == ALL
    for shard in reversed(ALL):  # in whatever order
        store.write(shard.start, rows[:, shard.start : shard.stop])
        assert shard not in store.missing()
    assert torch.equal(store_at(tmp_path).read(), rows)
    held = HeldFeatures(images=IMAGES)
    for shard in reversed(held.missing()):
        held.write(shard.start, rows[:, shard.start : shard.stop])
    assert held.missing() == []
    assert torch.equal(held.read(), rows)


def test_the_tensor_can_be_changed_without_the_file(tmp_path: Path, rows: Tensor) -> None:
    store = filled(tmp_path, rows)
    store.read().zero_()
    assert torch.equal(store.read(), rows)
    assert store.missing() == []


@pytest.mark.parametrize("shard", range(3))
@pytest.mark.parametrize("view", range(2))
def test_a_damaged_shard_is_told_of_and_missing_alone(
    tmp_path: Path, rows: Tensor, shard: int, view: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled(tmp_path, rows)
    data = bytearray(store.rows.read_bytes())
    data[(view * IMAGES + ALL[shard].stop - 1) * 5 * 4 + 3] ^= 1
    store.rows.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert store.missing() == [ALL[shard]]
    assert "differ from their digest and are computed again" in caplog.text
    store.write(ALL[shard].start, rows[:, ALL[shard].start : ALL[shard].stop])
    assert store.missing() == []
    assert torch.equal(store.read(), rows)


def test_rows_without_a_digest_are_missing_without_a_word(
    tmp_path: Path, rows: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled(tmp_path, rows)
    data = bytearray(store.digests.read_bytes())
    data[32:64] = bytes(32)
    store.digests.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert store.missing() == [ALL[1]]
    assert caplog.text == ""


@pytest.mark.parametrize("cut", ["rows", "digests"])
def test_files_that_were_cut_off_are_computed_again(tmp_path: Path, rows: Tensor, cut: str) -> None:
    store = filled(tmp_path, rows)
    path: Path = getattr(store, cut)
    path.write_bytes(path.read_bytes()[:-40])
    missing = store.missing()
    assert missing == (ALL if cut == "rows" else ALL[1:])
    for shard in missing:
        store.write(shard.start, rows[:, shard.start : shard.stop])
    assert torch.equal(store.read(), rows)
    assert store.missing() == []


def test_features_of_other_things_are_not_taken_and_are_removed(tmp_path: Path, rows: Tensor) -> None:
    filled(tmp_path, rows)
    other = FeatureStore(folder=tmp_path, name="teacher", key="b" * 64, views=2, images=IMAGES)
    other.write(0, rows[:, ALL[0].start : ALL[0].stop])
    assert store_at(tmp_path, "c" * 64).missing() == ALL
    assert store_at(tmp_path, "a" * 16 + "c" * 48).missing() == ALL  # the same file, another key
    assert store_at(tmp_path, views=1).missing() == ALL
    filled(tmp_path, rows, "c" * 64)
    assert {path.name.partition("-")[2][0] for path in tmp_path.glob("student-*")} == {"c"}
    assert other.missing() == ALL[1:]


def test_a_header_that_is_damaged_costs_all_shards(
    tmp_path: Path, rows: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled(tmp_path, rows)
    next(tmp_path.glob("*.json")).write_bytes(b"{")
    with caplog.at_level(logging.WARNING):
        assert store.missing() == ALL
    assert "all features are computed again" in caplog.text


def test_what_is_not_there_cannot_be_read(tmp_path: Path, rows: Tensor) -> None:
    with pytest.raises(CorruptArtifactError, match="0 of 3 shards are there.*Run the command again"):
        store_at(tmp_path).read()
    store = filled(tmp_path, rows)
    store.digests.write_bytes(store.digests.read_bytes()[:64] + bytes(32))  # as after another process began anew
    with pytest.raises(CorruptArtifactError, match="2 of 3 shards are there. Does another process write"):
        store.read()


def test_a_folder_that_is_a_file_is_told_of(tmp_path: Path, rows: Tensor) -> None:
    (tmp_path / "features").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot write .*features"):
        store_at(tmp_path / "features").write(0, rows[:, :SHARD_IMAGES])
