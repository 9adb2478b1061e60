"""What the site has beyond the pages under docs/: full docstrings of each public folder, and notebooks as pages."""

import json
import re
from pathlib import PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

_API = "reference/api.md"
_SECTION = re.compile(r"^## `([\w.]+)`$", re.MULTILINE)
_ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
_NOTEBOOK = re.compile(r"\]\((?!https?:)([^)#]+)\.ipynb")
_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+)([^)]*)\)")


def on_files(files: Files, *, config: Any) -> None:
    """Add one page for each folder that docs/reference/api.md lists, and one for each notebook."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = _page_of(json.loads(file.content_string), PurePosixPath(file.src_uri).name)
        files.append(File.generated(config, file.src_uri.replace(".ipynb", ".md"), content=page))
    api = files.get_file_from_path(_API)
    assert api is not None, "the page of all public names"
    _, *parts = _SECTION.split(api.content_string)
    for module, text in zip(parts[::2], parts[1::2], strict=True):
        names = "\n".join(f"\n::: {module}.{name}\n" for name in _ROW.findall(text))
        page = File.generated(config, f"reference/api/{module}.md", content=f"# {module}\n{names}")
        page.inclusion = InclusionLevel.NOT_IN_NAV  # linked from the table of all names
        files.append(page)


def _page_of(notebook: Any, name: str) -> str:
    """Write a notebook as Markdown, with what its cells show."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        parts += [_shown(output) for output in cell.get("outputs", ())]
    title, _, rest = "\n\n".join(parts).partition("\n")
    return f"{title}\n\nThis page is a notebook: [download]({name}) it, and open it in Jupyter.\n{rest}"


def _shown(output: Any) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![what the cell draws](data:image/png;base64,{''.join(data['image/png']).strip()})"
    if "text/html" in data:
        return "".join(data["text/html"])
    return f"```text\n{''.join(output.get('text', data.get('text/plain', ''))).rstrip()}\n```"


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
    download = f"]({path.stem}.ipynb"
    markdown = _NOTEBOOK.sub(lambda m: m[0] if m[0] == download else f"]({m[1]}.md", markdown)
    return _LINK.sub(lambda m: m[1] if m[2].count("..") >= outside else m[0], markdown)
