"""Hooks of mkdocs: pages of the site that are files of the repository, read when the site is built, never copied."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# Page of the site -> file of the repository.
PAGES = {
    "index.md": "README.md",
    "design.md": "docs/design.md",
    "results.md": "results/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
PICTURES = (".png", ".svg", ".jpg", ".gif")
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```\s*$)", re.MULTILINE | re.DOTALL)
# Named by the reference where they are there.
OPTIONAL = re.compile(r"^::: (prompt_transfer\.hub)\.\w+\n", re.MULTILINE)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages, and the pictures that they show."""
    for page, source in PAGES.items():
        text, pictures = page_of(source)
        files.append(File.generated(config, page, content=text))
        for picture in pictures:
            if files.get_file_from_path(picture) is None:
                files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Leave names out of the reference whose module is not there."""
    return OPTIONAL.sub(
        lambda match: match[0] if (ROOT / f"{match[1].replace('.', '/')}.py").is_file() else "", markdown
    )


def page_of(source: str) -> tuple[str, list[str]]:
    """A file of the repository as a page, and the pictures it shows, as paths from the root.

    Links to files that are pages lead to these; what is no page is named and not linked.

    Raises:
        PluginError: a link that leads nowhere.
    """
    pictures: list[str] = []
    folder = (ROOT / source).parent

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if re.match(r"\w+:", match["target"]) or not target:
            return match[0]
        path = (folder / target).resolve()
        if not path.exists() or not path.is_relative_to(ROOT):
            raise PluginError(f"{source} links to {target}, which is not there")
        place = path.relative_to(ROOT).as_posix()
        page = next((name for name, file in PAGES.items() if file == place), None)
        if page is not None:
            return f"[{match['text']}]({page}{'#' + anchor if anchor else ''})"
        if match["picture"] and path.suffix in PICTURES:
            pictures.append(place)
            return f"![{match['text']}]({place})"
        return match["text"] if place in match["text"] else f"{match['text']} (`{place}`)"

    parts = FENCE.split((ROOT / source).read_text(encoding="utf-8"))
    text = "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)
    return text, pictures
