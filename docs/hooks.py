"""MkDocs hooks: build pages from files of the repository without copying them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "docs/pages/"
# Page of the site -> file of the repository outside FOLDER.
PAGES = {
    "index.md": "README.md",
    "design.md": "docs/design.md",
    "pretraining.md": "docs/pretraining.md",
    "results.md": "results/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
PICTURES = (".png", ".svg", ".jpg", ".gif")
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```\s*$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the generated pages and the pictures they show, and translate the links of the others."""
    own = {file.src_uri: FOLDER + file.src_uri for file in files if file.src_uri.endswith(".md")}
    for page, source in {**own, **PAGES}.items():
        text, pictures = page_of(source)
        old = files.get_file_from_path(page)
        if old is not None:
            files.remove(old)
        files.append(File.generated(config, page, content=text))
        for picture in pictures:
            if files.get_file_from_path(picture) is None:
                files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    return files


def page_of(source: str) -> tuple[str, list[str]]:
    """Return a file of the repository as a page, and the pictures it shows as paths from the root.

    Links to files that are pages become links of the site; other files are named without a link.

    Raises:
        PluginError: a link to a file that does not exist.
    """
    pictures: list[str] = []
    folder = (ROOT / source).parent
    start = posixpath.dirname(_page_name(source) or "") or "."

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if re.match(r"\w+:", match["target"]) or not target:
            return match[0]
        path = (folder / target).resolve()
        if not path.exists() or not path.is_relative_to(ROOT):
            raise PluginError(f"{source} links to {target}, which does not exist")
        place = path.relative_to(ROOT).as_posix()
        page = _page_name(place)
        if page is not None:
            return f"[{match['text']}]({posixpath.relpath(page, start)}{'#' + anchor if anchor else ''})"
        if match["picture"] and path.suffix in PICTURES:
            pictures.append(place)
            return f"![{match['text']}]({posixpath.relpath(place, start)})"
        return match["text"] if place in match["text"] else f"{match['text']} (`{place}`)"

    parts = FENCE.split((ROOT / source).read_text(encoding="utf-8"))
    text = "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)
    return text, pictures


def _page_name(place: str) -> str | None:
    """Return the page of the site that a file of the repository is, or None."""
    if place.startswith(FOLDER) and place.endswith(".md"):
        return place.removeprefix(FOLDER)
    return next((name for name, file in PAGES.items() if file == place), None)
