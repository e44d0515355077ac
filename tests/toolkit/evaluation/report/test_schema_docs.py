"""runtime/JSON.md says what the code writes."""

import importlib.util
from pathlib import Path

REPOSITORY = Path(__file__).parents[4]


def test_the_page_is_what_the_tool_writes() -> None:
    spec = importlib.util.spec_from_file_location("write_schema_docs", REPOSITORY / "tools" / "write_schema_docs.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.TARGET.read_text(encoding="utf-8") == tool.page(), "run: python tools/write_schema_docs.py"
    for field in ("top1_difference", "only_first", "foreign_cores", "joules_per_image", "keep_float", "git_commit"):
        assert f"| `{field}` |" in tool.page()
    assert "Raises:" not in tool.page()
