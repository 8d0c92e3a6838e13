"""Whether every local link of a built site leads somewhere: `python docs/links.py docs/_build/html`."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SKIPPED = ("genindex.html", "search.html", "_static")  # Sphinx's own


class Page(HTMLParser):
    """Links and anchors of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what this element points at, and what it is called."""
        named = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := named.get(key))}
        self.links += [value for key in ("href", "src") if (value := named.get(key))]


def dead_links(site: Path) -> list[str]:
    """Say which links of which pages lead nowhere; those to other hosts are not looked at."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.exists():
                dead.append(f"{path.relative_to(site.resolve())}: {link}")
            elif anchor and target in pages and anchor not in pages[target].anchors and target.name not in SKIPPED:
                dead.append(f"{path.relative_to(site.resolve())}: {link} (no such place on the page)")
    return sorted(set(dead))


def remote_parts(site: Path) -> list[str]:
    """Say which pages load scripts, styles, fonts or images from other hosts: none may."""
    found = []
    for path in site.rglob("*.html"):
        if "_static" in path.parts:
            continue
        parser = _Loaded()
        parser.feed(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(site)}: loads {url}" for url in parser.urls]
    return sorted(set(found))


class _Loaded(HTMLParser):
    """What a page loads by itself from another host."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        url = named.get("src") if tag in ("script", "img", "iframe") else named.get("href") if tag == "link" else None
        if url and urlsplit(url).netloc:
            self.urls.append(url)


if __name__ == "__main__":
    problems = dead_links(Path(sys.argv[1])) + remote_parts(Path(sys.argv[1]))
    print(*problems, sep="\n", end="\n" if problems else "")
    sys.exit(bool(problems))
