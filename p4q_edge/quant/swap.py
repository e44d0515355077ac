"""The rule that swaps linears and attentions for their quantizable forms."""

from torch import nn

from p4q_edge.quant.attention import Attention, CrossAttention, TimmAttention, is_plain
from p4q_edge.quant.linear import QuantLinear
from p4q_edge.quant.scheme import QuantScheme


def quantize_modules(
    model: nn.Module,
    scheme: QuantScheme,
    *,
    cross_attention: frozenset[str],
    attention_owners: frozenset[str] = frozenset(),
) -> list[str]:
    """Swap every linear and attention of `model` for its quantizable form, in place.

    Modules are chosen by type, not by the names of one architecture. Paths that the scheme keeps in float, and
    attentions with something special, are left alone.

    Args:
        cross_attention: attentions that do not attend to their own query; of these, the linears are swapped.
        attention_owners: further modules whose linears get the scheme's bits for attentions.

    Returns:
        Paths of the linears and attentions that stay in high precision.
    """
    kept: list[str] = []
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.MultiheadAttention) and not scheme.keeps_float(path) and is_plain(module):
            other = path in cross_attention
            new = CrossAttention.from_multihead(module) if other else Attention.from_multihead(module, scheme)
            replace_module(model, path, new)
    for path, module in list(model.named_modules()):
        if any(path == k or path.startswith(k + ".") for k in kept):
            continue
        plain_timm = TimmAttention.is_plain(module)
        if not (plain_timm or isinstance(module, nn.MultiheadAttention | nn.Linear)):
            continue
        if scheme.keeps_float(path) or isinstance(module, nn.MultiheadAttention):
            kept.append(path)
        elif plain_timm:
            replace_module(model, path, TimmAttention.from_timm(module, scheme))
        elif not isinstance(_parent(model, path), Attention):
            attends = path.rpartition(".")[0] in attention_owners or isinstance(_parent(model, path), CrossAttention)
            linear = QuantLinear.from_linear(module, scheme.for_attention() if attends else scheme)
            replace_module(model, path, linear)
    return kept


def replace_module(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put `new` in the place of the module at the dotted path."""
    parent_path, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent_path), name, new)


def _parent(model: nn.Module, path: str) -> nn.Module:
    return model.get_submodule(path.rpartition(".")[0])
