"""Every text side of open_clip: what is computed here is what the model itself computes, or it is refused."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from p4q_edge.calibration.text import calibrate_text
from p4q_edge.models.load import LoadedModel
from p4q_edge.models.prompts import PromptLearner, initial_context, template_embeddings
from p4q_edge.models.text_tower import TextTower, encoder_of
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.runtime.errors import UsageError

SIZES = {"width": 32, "heads": 2, "layers": 2, "vocab_size": 99}
NOT_OF_THE_TOWER = {"hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"}
NAMES = ("cat", "very old dog", "bird", "fox", "grey house")
WORDS = ("a", "photo", "of", "cat", "very", "old", "dog", "bird", "fox", "grey", "house", ".")


@dataclass(frozen=True)
class WordTokenizer:
    """A token for each word, in the layout of a model family.

    Attributes:
        start: token before each text, or None.
        end: token after each text, or None.
        padding: token that fills the rest.
    """

    length: int
    start: int | None
    end: int | None
    padding: int

    def __call__(self, texts: Sequence[str]) -> Tensor:
        rows = []
        for text in texts:
            ids = [10 + WORDS.index(word) for word in text.replace(".", " .").split()] if text != "b" else [50]
            row = [t for t in (self.start, *ids, self.end) if t is not None]
            rows.append(row + [self.padding] * (self.length - len(row)))
        return torch.tensor(rows)


def _layout(text: dict[str, Any]) -> WordTokenizer:
    """The tokens of a family, from what its tower pools."""
    length, pool = text.get("context_length", 77), text.get("pool_type", "argmax")
    if pool == "eos":  # XLM-V has a start token, mT5 has none
        return WordTokenizer(length, 0, 2, 1) if text["eos_id"] == 2 else WordTokenizer(length, None, 1, 0)
    if pool == "last" and text.get("proj_bias", False):  # SigLIP: the end token is the padding
        return WordTokenizer(length, None, 1, 1)
    if pool == "last":  # CLIPA: BERT's tokens without the separator
        return WordTokenizer(length, 8, None, 0)
    return WordTokenizer(length, 97, 98, 0)


def _text_sides() -> dict[str, tuple[bool, dict[str, Any]]]:
    """All text configurations of open_clip at toy size, once each, by the first model that has it."""
    found: dict[str, tuple[bool, dict[str, Any]]] = {}
    known = set()
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        if "hf_model_name" in config["text_cfg"]:
            continue
        text = {key: value for key, value in config["text_cfg"].items() if key not in NOT_OF_THE_TOWER} | SIZES
        side = bool(config.get("custom_text", False)) or "multimodal_cfg" in config, text
        if json.dumps(side, sort_keys=True) not in known:
            known.add(json.dumps(side, sort_keys=True))
            found[name] = side
    return found


SIDES = _text_sides()
PLAIN = {name: side for name, side in SIDES.items() if not side[1].get("embed_cls")}


@pytest.fixture(params=PLAIN)
def model(request: pytest.FixtureRequest, clip_with_text: Callable[..., LoadedModel]) -> LoadedModel:
    """A toy with the text side of one family and its layout of tokens."""
    custom, text = PLAIN[request.param]
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    return replace(clip_with_text(kind=kind, **text), tokenizer=_layout(text))


def test_the_families_are_there() -> None:
    sides = [text for _, text in PLAIN.values()]
    assert any(text.get("no_causal_mask") and text.get("pool_type") == "last" for text in sides)  # SigLIP, CLIPA
    assert any(text.get("no_causal_mask") and "pool_type" not in text for text in sides)  # MobileCLIP
    assert any(text.get("pool_type") == "eos" for text in sides)  # worldwide
    assert len(PLAIN) > 10


def test_a_tower_computes_what_its_model_computes(model: LoadedModel) -> None:
    tokens = model.tokenizer(["a photo of a very old dog.", "cat", ""])
    expected = model.clip.encode_text(tokens)
    tower = TextTower(model.clip, QuantScheme())
    torch.testing.assert_close(tower.encode(tokens), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder_of(model.clip)(tokens), expected, atol=1e-5, rtol=1e-5)
    text = model.clip.text if hasattr(model.clip, "text") else model.clip
    assert tower.shares_prefix == tower.causal == (text.attn_mask is not None)


def test_context_from_words_starts_at_the_hand_written_embeddings_and_gets_a_gradient(model: LoadedModel) -> None:
    tower = TextTower(model.clip, QuantScheme())
    generator = torch.Generator().manual_seed(0)
    context = initial_context(tower, model.tokenizer, words="a photo of a", num_tokens=4, generator=generator)
    learner = PromptLearner(tower, model.tokenizer, NAMES, context=context)
    written = template_embeddings(model.clip.encode_text, model.tokenizer, NAMES, templates=["a photo of a {}."])
    torch.testing.assert_close(learner().detach(), written, atol=1e-5, rtol=1e-4)
    calibrate_text(tower, learner)
    learner().square().matmul(torch.arange(32.0)).sum().backward()
    assert learner.context.grad is not None
    assert float(learner.context.grad.abs().sum(1).min()) > 0


@pytest.mark.parametrize(
    "text",
    [
        {"ls_init_value": 0.1},
        {"mlp_ratio": 3.0},
        {"proj_type": "none"},
        {"proj_bias": True},
        {"pool_type": "first", "no_causal_mask": True},
        {"qk_norm": True},
        {"block_type": "custom", "scale_attn": True, "scale_fc": True, "scale_heads": True},
        {"act_kwargs": {"approximate": "tanh"}},
    ],
    ids=lambda text: "-".join(text),
)
def test_towers_of_other_make(clip_with_text: Callable[..., LoadedModel], text: dict[str, object]) -> None:
    model = clip_with_text(**text)
    tokens = model.tokenizer(["a photo of a cat.", "dog"])
    tower = TextTower(model.clip, QuantScheme())
    torch.testing.assert_close(tower.encode(tokens), model.clip.encode_text(tokens), atol=1e-5, rtol=1e-5)
    assert tower.shares_prefix == (tower.causal and not {"qk_norm", "block_type"} & text.keys())


def test_captioners_are_refused_with_the_way_out(clip_with_text: Callable[..., LoadedModel]) -> None:
    assert {name.partition("_")[0] for name in SIDES if name not in PLAIN} == {"coca"}
    clip = clip_with_text(embed_cls=True).clip
    message = r"TextTransformer has no plain end-of-text pooling; set learn\.prompts = false"
    with pytest.raises(UsageError, match=message):
        TextTower(clip, QuantScheme())
    tokens = open_clip.SimpleTokenizer(context_length=24)(["a cat"])
    assert torch.equal(encoder_of(clip)(tokens), clip.encode_text(tokens))  # hand-written prompts still work


def test_text_models_of_other_libraries_are_refused_with_the_way_out(
    clip_with_text: Callable[..., LoadedModel],
) -> None:
    class HFTextEncoder(torch.nn.Module):
        pass

    clip = clip_with_text().clip
    clip.text = HFTextEncoder()
    with pytest.raises(UsageError, match=r"HFTextEncoder has no token_embedding, .*; set learn\.prompts = false"):
        TextTower(clip, QuantScheme())
