"""The learning curve in the page: a picture where one was logged, nothing where none was."""

from dataclasses import replace
from typing import Any

import msgspec

from p4q_edge.evaluation.report.html import render_html


def test_a_logged_curve_is_drawn(report: Any, minimal_report: Any) -> None:
    page = render_html(report)
    assert 'aria-label="Learning curve"' in page
    assert ">held-out top-1, %<" in page
    assert "a head learned beside it" in page
    assert "Learning curve" not in render_html(minimal_report)


def test_a_curve_without_held_out_images_shows_the_loss_alone(report: Any) -> None:
    bare = tuple(replace(point, held_out_top1=None) for point in report.learning)
    page = render_html(msgspec.structs.replace(report, learning=bare))
    assert 'aria-label="Learning curve"' in page
    assert "held-out top-1" not in page
    assert "a head learned beside it" not in page
