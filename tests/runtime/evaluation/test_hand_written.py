"""What each class won or lost by learning."""

from __future__ import annotations

from p4q_edge.runtime.evaluation.report.trial_rows import MOST_CLASSES, _class_gains
from p4q_edge.runtime.evaluation.trials.hand_written import class_gains

NAMES = ("cup", "plate", "bowl")


def test_shares_of_the_same_images_by_class() -> None:
    labels, learned = (0, 0, 1, 1, 2, 0), (0, 0, 1, 0, 2, 1)
    found = class_gains({0: 1, 1: 0, 2: 1, 3: 1}, learned, labels, NAMES)  # of images 4 and 5 nothing is known
    assert [(row.name, row.zero_shot.value, row.learned.value, row.learned.n) for row in found] == [
        ("plate", 1.0, 0.5, 2),
        ("cup", 0.5, 1.0, 2),
    ]


def test_of_many_classes_the_most_changed_stand_in_the_table() -> None:
    count = MOST_CLASSES + 5
    labels = [label for label in range(count) for _ in range(2)]
    before = {2 * label: label if label < 3 else -1 for label in range(count)}
    before |= {2 * label + 1: label for label in range(count)}
    learned = [label if index % 2 or label >= 3 else -1 for index, label in enumerate(labels)]
    rows = class_gains(before, learned, labels, [f"class {number}" for number in range(count)])
    assert len(rows) == count
    table = _class_gains(rows)
    assert [row[0].value for row in table.rows[:3]] == ["class 0", "class 1", "class 2"]
    assert table.rows[0][3].value == "-50.0"
    assert len(table.rows) == MOST_CLASSES
    assert f"Of {count} classes the first and the last {MOST_CLASSES // 2} stand here" in table.note
    assert _class_gains(rows[:4]).note.endswith("stands first.")
