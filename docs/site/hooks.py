"""What the site has beyond the pages under docs/: a page with full docstrings for each public folder."""

import re
from pathlib import PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

_API = "reference/api.md"
_SECTION = re.compile(r"^## `([\w.]+)`$", re.MULTILINE)
_ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+)([^)]*)\)")


def on_files(files: Files, *, config: Any) -> None:
    """Add one page for each folder that docs/reference/api.md lists."""
    api = files.get_file_from_path(_API)
    assert api is not None, "the page of all public names"
    _, *parts = _SECTION.split(api.content_string)
    for module, text in zip(parts[::2], parts[1::2], strict=True):
        names = "\n".join(f"\n::: {module}.{name}\n" for name in _ROW.findall(text))
        page = File.generated(config, f"reference/api/{module}.md", content=f"# {module}\n{names}")
        page.inclusion = InclusionLevel.NOT_IN_NAV  # linked from the table of all names
        files.append(page)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Link the table of public names to their docstrings; unlink what lies outside docs/."""
    path = PurePosixPath(page.file.src_uri)
    if page.file.src_uri == _API:
        head, *parts = _SECTION.split(markdown)
        linked = (
            f"## [`{module}`](api/{module}.md)" + _ROW.sub(rf"| [`\1`][{module}.\1] |", text)
            for module, text in zip(parts[::2], parts[1::2], strict=True)
        )
        markdown = head + "".join(linked)
    outside = len(path.parts)
    return _LINK.sub(lambda m: m[1] if m[2].count("..") >= outside else m[0], markdown)
