"""MkDocs hooks: the package as it is imported, for the API reference, and pages that stand at the repository's root.

The folders of the layers stand at the top of the repository and are mapped into the package by setuptools, which a
reader of source files cannot see. Links in a folder that lives as long as the build put them where they are imported.
A page that says `<!-- root: FILE -->` shows that file, with its links into docs/ made relative. Links of notebooks to
pages, which MkDocs leaves alone, lead to the pages as built.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("theory", "runtime", "proofs_checks")
_linked = tempfile.TemporaryDirectory(prefix="specbound-docs-")


def link_package(folder: Path) -> None:
    """Make `folder/specbound` a package with the three layers beside the modules of the command."""
    package = folder / "specbound"
    package.mkdir(exist_ok=True)
    for source in [*(ROOT / "specbound").iterdir(), *(ROOT / layer for layer in LAYERS)]:
        link = package / source.name
        if source.name != "__pycache__" and not link.exists():
            link.symlink_to(source, target_is_directory=source.is_dir())


@event_priority(100)
def on_config(config: Any) -> Any:
    """Add the linked package to the places where mkdocstrings looks; before mkdocstrings reads its settings."""
    link_package(Path(_linked.name))
    handlers = config.plugins["mkdocstrings"].config.handlers
    handlers.setdefault("python", {}).setdefault("paths", []).insert(0, _linked.name)
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the file in the place of a comment `<!-- root: FILE -->`."""
    found = re.fullmatch(r"<!-- root: (\S+) -->\s*", markdown)
    if found is None:
        return markdown
    return (ROOT / found[1]).read_text(encoding="utf-8").replace("](docs/", "](")


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Let the links of a notebook to `../PAGE.md` lead to `../PAGE.html`."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    return re.sub(r'(href="\.\./[\w/-]+)\.md(?=["#])', r"\1.html", html)
