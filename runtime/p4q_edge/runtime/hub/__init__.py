"""Bundles on the Hugging Face Hub: fetched by address, pushed with a model card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.hub.address import HubAddress, is_hub_address, parse_address
    from p4q_edge.runtime.hub.download import download_bundle
    from p4q_edge.runtime.hub.model_card import card_text
    from p4q_edge.runtime.hub.network import answer_of, guarded_answers, is_hub_trouble, network_cause, strange_answer
    from p4q_edge.runtime.hub.upload import PushedBundle, PushOptions, push_bundle

__all__ = [
    "HubAddress",
    "PushOptions",
    "PushedBundle",
    "answer_of",
    "card_text",
    "download_bundle",
    "guarded_answers",
    "is_hub_address",
    "is_hub_trouble",
    "network_cause",
    "parse_address",
    "push_bundle",
    "strange_answer",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "address": ("HubAddress", "is_hub_address", "parse_address"),
            "download": ("download_bundle",),
            "model_card": ("card_text",),
            "network": ("answer_of", "guarded_answers", "is_hub_trouble", "network_cause", "strange_answer"),
            "upload": ("PushOptions", "PushedBundle", "push_bundle"),
        },
    )
