"""The configuration for DeepStream is one message of its published schema; DeepStream itself is not here to read it."""

from __future__ import annotations

from typing import Any

import pytest

text_format = pytest.importorskip("google.protobuf.text_format", reason="protobuf is not installed")
from deepstream_schema import plugin_control  # noqa: E402

from p4q_edge.runtime.serving.model_configs import deepstream_config  # noqa: E402
from p4q_edge.runtime.serving.text_format import Word, to_text  # noqa: E402


def read(text: str) -> Any:
    return text_format.Parse(text, plugin_control())


def test_deepstream_reads_every_field_that_is_written() -> None:
    found = read(to_text(deepstream_config("clip_engine", max_batch=16)))
    config = found.infer_config
    assert (config.unique_id, list(config.gpu_ids), config.max_batch_size) == (1, [0], 16)
    assert (config.backend.triton.model_name, config.backend.triton.version) == ("clip_engine", -1)
    assert (config.backend.triton.model_repo.root, config.backend.triton.model_repo.strict_model_config) == (".", True)
    assert [layer.name for layer in config.backend.outputs] == ["logits"]
    assert (config.preprocess.network_format, config.preprocess.tensor_order) == (1, 1)
    assert config.preprocess.tensor_name == "image"
    # The graph takes pixels as they are, 0 to 255.
    assert config.preprocess.normalize.scale_factor == 1
    assert not config.preprocess.normalize.channel_offsets
    assert config.postprocess.labelfile_path == "clip_engine/labels.txt"
    assert config.postprocess.HasField("classification")
    assert found.input_control.process_mode == 1


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("infer_config", "gpu_id"), 0, 'has no field named "gpu_id"'),
        (("infer_config", "preprocess", "network_format"), Word("RGB"), "has no value named RGB"),
        (("infer_config", "backend", "triton", "model_name"), 3, "Expected string"),
        (("input_control", "interval"), -1, "Value out of range"),
    ],
)
def test_a_field_or_a_word_that_it_does_not_have_would_be_seen(path: tuple[str, ...], value: Any, said: str) -> None:
    config: Any = deepstream_config("clip_engine", max_batch=1)
    message = config
    for name in path[:-1]:
        message = message[name]
    message[path[-1]] = value
    with pytest.raises(text_format.ParseError, match=said):
        read(to_text(config))
