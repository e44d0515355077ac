"""Checkpoints of learning: safetensors, written whole or not at all, resumed only into the same run."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from p4q_edge.learning.curves import CurvePoint, decode_curve, encode_curve
from p4q_edge.learning.tensor_file import read_tensors, write_tensors

CURVE = "curve"
SECONDS_BETWEEN_SAVES = 2.0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state after a whole epoch, to be written."""

    key: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


@dataclass(kw_only=True)
class Checkpoint:
    """What a checkpoint holds: the learned weights, AdamW's moments, the schedule's position and the curve so far."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    curve: list[CurvePoint] = field(default_factory=list)
    saved_at: float = 0.0
    pending: Snapshot | None = None

    def learned(self) -> dict[str, nn.Parameter]:
        """Parameters with a gradient, by name."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}


def save_checkpoint(path: Path, state: Checkpoint, *, key: str, epoch: int, final: bool) -> None:
    """Take a snapshot after a whole epoch.

    It is written at once when it is the last or when the last write is a while ago; else it stays pending for
    `flush_checkpoint`.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in state.learned().items():
        tensors[f"weight.{name}"] = parameter.detach().clone()
        for moment, value in state.optimizer.state[parameter].items():
            tensors[f"{moment}.{name}"] = value.detach().clone()
    metadata = {"epoch": str(epoch), "rates": json.dumps(state.schedule.get_last_lr())}
    metadata[CURVE] = encode_curve(state.curve)
    state.pending = Snapshot(key=key, tensors=tensors, metadata=metadata)
    if final or time.monotonic() - state.saved_at >= SECONDS_BETWEEN_SAVES:
        flush_checkpoint(path, state)


def flush_checkpoint(path: Path, state: Checkpoint) -> None:
    """Write the snapshot that is pending, if any."""
    if state.pending is not None:
        write_tensors(path, state.pending.tensors, key=state.pending.key, metadata=state.pending.metadata)
        state.pending, state.saved_at = None, time.monotonic()


def load_checkpoint(path: Path, state: Checkpoint, *, key: str) -> int:
    """Restore a checkpoint of the same run.

    Returns:
        The number of epochs done; 0 when there is no checkpoint, or one of another run.

    Raises:
        CorruptArtifactError: the file cannot be read, or its contents are not what was written.
    """
    stored = read_tensors(path, key=key)
    if stored is None:
        return 0
    tensors, metadata = stored
    for name, parameter in state.learned().items():
        parameter.data.copy_(tensors[f"weight.{name}"])
        state.optimizer.state[parameter] = {
            # Moments lie where the parameter is; AdamW keeps its count of steps on the CPU.
            kind.removesuffix(f".{name}"): tensor.to(parameter.device) if tensor.ndim else tensor
            for kind, tensor in tensors.items()
            if kind.endswith(f".{name}") and not kind.startswith("weight.")
        }
    state.curve[:] = decode_curve(metadata.get(CURVE, ""))
    epoch = int(metadata["epoch"])
    _move_schedule(state, epoch, json.loads(metadata["rates"]))
    return epoch


def _move_schedule(state: Checkpoint, epoch: int, rates: list[float]) -> None:
    state.schedule.last_epoch = epoch
    state.schedule._last_lr = [*rates]
    for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
