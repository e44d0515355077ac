"""Learning curves: as CSV, as TensorBoard's events, and over an interruption."""

import csv
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learning_runs import source_of

from p4q_edge.learning.curves import (
    CurvePoint,
    as_csv,
    as_events,
    crc32c,
    decode_curve,
    encode_curve,
    write_curve,
)
from p4q_edge.models.load import LoadedModel
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.images.image_set import ImageSet
from p4q_edge.stages.learning_log import held_out_top1, log_learning, read_curve
from p4q_edge.stages.pipeline import Prepared, learn_stage, prepare
from p4q_edge.stages.run_files import RunFiles

POINTS = (
    CurvePoint(epoch=1, loss=1.5, rates={"context": 0.002, "adapter": 0.01}, held_out_top1=0.25),
    CurvePoint(epoch=2, loss=0.75, rates={"context": 0.001, "adapter": 0.005}, held_out_top1=0.5),
)

points = st.builds(
    CurvePoint,
    epoch=st.integers(1, 2**31),
    loss=st.floats(0, 1e9),
    rates=st.dictionaries(st.sampled_from(["context", "adapter"]), st.floats(0, 1)),
    held_out_top1=st.none() | st.floats(0, 1),
)


def test_a_table_has_a_line_for_each_epoch() -> None:
    assert as_csv(POINTS) == (
        "epoch,loss,held_out_top1,rate_context,rate_adapter\n1,1.5,0.25,0.002,0.01\n2,0.75,0.5,0.001,0.005\n"
    )
    without = [msgspec.structs.replace(POINTS[0], held_out_top1=None, rates={})]
    assert as_csv(without) == "epoch,loss,held_out_top1\n1,1.5,\n"


@given(st.lists(points, max_size=5))
def test_points_come_back_as_they_went(written: list[CurvePoint]) -> None:
    assert decode_curve(encode_curve(written)) == tuple(written)
    rows = list(csv.DictReader(as_csv(written).splitlines()))
    assert [float(row["loss"]) for row in rows] == [point.loss for point in written]


def test_checksums_are_those_of_rfc_3720() -> None:
    """Appendix B.4 of the RFC."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes([255] * 32)) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def _records(data: bytes) -> list[bytes]:
    """The messages of an event file; their checksums are looked at by TensorBoard's own reader below."""
    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(data[12 : 12 + length])
        data = data[16 + length :]
    return found


def test_events_hold_a_scalar_of_each_kind_and_epoch() -> None:
    first, *others = _records(as_events(POINTS))
    assert b"brain.Event:2" in first
    assert len(others) == 2 * 4
    assert [one for one in others if b"loss" in one][1].endswith(struct.pack("<f", 0.75))
    assert all(one[:1] == b"\x10" for one in others)


def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_curve(tmp_path, POINTS)
    read = EventAccumulator(str(tmp_path)).Reload()
    assert set(read.Tags()["scalars"]) == {"loss", "held_out_top1", "rate/context", "rate/adapter"}
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(1, 1.5), (2, 0.75)]


def test_an_interrupted_run_has_the_whole_curve(
    toy_clip: LoadedModel, toy_images: Callable[[int], ImageSet], tmp_path: Path
) -> None:
    prepared = prepare(source_of(toy_clip, toy_images(6), epochs=6), RunFiles(folder=tmp_path / "whole"))
    whole = learn_stage(prepared, None).curve
    assert [point.epoch for point in whole] == [1, 2, 3, 4, 5, 6]
    assert whole[-1].loss < whole[0].loss
    assert whole[0].rates == {"context": 5e-3, "adapter": 1e-2}
    assert whole[-1].rates["context"] < 1e-3

    def stop(epoch: int, loss: float) -> None:
        if epoch == 4:
            raise KeyboardInterrupt

    files = RunFiles(folder=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        learn_stage(prepared, files, progress=stop)
    assert learn_stage(prepared, files).curve == whole
    assert learn_stage(prepared, files).curve == whole  # unchanged, taken from its file


def test_a_curve_is_logged_beside_a_run_that_it_does_not_change(prepared: Prepared, tmp_path: Path) -> None:
    files = RunFiles(folder=tmp_path / "run")
    learned = learn_stage(prepared, files)
    before = files.learned.read_bytes()
    table, _ = log_learning(learned, files, tmp_path / "log")
    assert files.learned.read_bytes() == before
    rows = list(csv.DictReader(table.read_text().splitlines()))
    shares = [float(row["held_out_top1"]) for row in rows]
    assert [float(row["loss"]) for row in rows] == [point.loss for point in learned.curve]
    assert max(shares) > 0.5 > 0.25  # four classes of coloured images, of which it has seen others
    assert [point.held_out_top1 for point in read_curve(files)] == shares
    assert held_out_top1(prepared, epochs=len(rows)) == shares
    assert torch.equal(learn_stage(prepared, None).classifier.text_embedding, learned.classifier.text_embedding)


def test_the_curve_of_what_was_learned_before_goes_with_it(
    toy_clip: LoadedModel, toy_images: Callable[[int], ImageSet], tmp_path: Path
) -> None:
    files = RunFiles(folder=tmp_path / "run")
    for epochs in (2, 3):
        learned = learn_stage(prepare(source_of(toy_clip, toy_images(6), epochs=epochs), files), files)
        assert read_curve(files) == ()
        log_learning(learned, files, tmp_path / "log")
        assert len(read_curve(files)) == epochs


def test_a_damaged_curve_says_what_to_do(tmp_path: Path) -> None:
    files = RunFiles(folder=tmp_path)
    assert read_curve(files) == ()
    files.curve.write_text('[{"epoch": "one"}]')
    with pytest.raises(CorruptArtifactError, match="is not a learning curve.*Remove it; `p4q-edge learn --log-dir`"):
        read_curve(files)
