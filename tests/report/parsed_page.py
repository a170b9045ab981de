"""A page as a strict reader sees it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "link", "input"}
_OUTSIDE = re.compile(r"^(?!#|data:image/(webp|png);base64,)")  # what an attribute may not lead to


class ParsedPage(HTMLParser):
    """Reads a page and fails where it is no well-formed page, or needs anything but itself."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text_of: dict[str, list[str]] = {}  # what is read inside of each element's name
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.ids: list[str] = []
        self._open: list[str] = []
        assert text.startswith("<!DOCTYPE html>\n")
        self.feed(text)
        self.close()
        assert self._open == []
        assert len(self.ids) == len(set(self.ids)), "an id is there twice"
        self._check_references(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.text_of.setdefault(tag, []).append(data)

    def named(self, tag: str) -> list[dict[str, str]]:
        """The attributes of each element of this name."""
        return [attributes for name, attributes in self.elements if name == tag]

    def words(self, tag: str = "body") -> str:
        """All text within elements of this name."""
        return " ".join(" ".join(self.text_of.get(tag, [])).split())

    def _check_references(self, text: str) -> None:
        assert not {name for name, _ in self.elements} & {"script", "link", "iframe", "object", "embed", "base"}
        for tag, attributes in self.elements:
            for name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
                assert not _OUTSIDE.match(attributes.get(name, "#")), f"<{tag} {name}={attributes[name][:80]}>"
            assert not [name for name in attributes if name.startswith("on")]
            for target in (attributes.get("href", ""), attributes.get("xlink:href", "")):
                assert not target.startswith("#") or target[1:] in self.ids, f"{target} leads nowhere"
        assert set(re.findall(r"url\(.", text)) <= {"url(#"}
        for target in re.findall(r"url\(#([^)]+)\)", text):
            assert target in self.ids
        assert "@import" not in text
