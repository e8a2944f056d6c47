"""Reads a page with Python's own parser: tables by caption, ids, references, pictures, and whether the tags fit."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "hr", "wbr", "input"}


@dataclass
class Cell:
    """Text as read, and the exact value where the cell holds a number."""

    text: str = ""
    value: float | None = None


@dataclass
class Parsed(HTMLParser):
    """What the tests look at.

    Attributes:
        tables: id of the caption -> (name of the group, name of the row) -> column -> cell.
        ids, targets: ids, and what points to one (#fragments, aria-labelledby).
        resources: everything a browser would fetch.
        links: addresses a reader may follow.
        pictures: attributes of each img.
        headings: levels in order.
        problems: tags that do not fit.
    """

    tables: dict[str, dict[tuple[str, str], dict[str, Cell]]] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    targets: set[str] = field(default_factory=set)
    resources: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    pictures: list[dict[str, str]] = field(default_factory=list)
    headings: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.caption = self.group = self.row = ""
        self.columns: list[Cell] = []
        self.cells: list[Cell] = []
        self.cell: Cell | None = None
        self.scope = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
            if "caption" in self.open:
                self.caption = found["id"]
                self.tables[self.caption] = {}
        if "aria-labelledby" in found:
            self.targets.add(found["aria-labelledby"])
        if tag == "a":
            (self.targets.add(found["href"][1:]) if found["href"][0] == "#" else self.links.append(found["href"]))
        for name in ("src", "srcset", "data", "poster", "action", "background"):
            if name in found:
                self.resources.append(found[name])
        if tag == "link":
            self.resources.append(found["href"])
        if tag == "img":
            self.pictures.append(found)
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append(int(tag[1]))
        if tag == "table":
            self.caption = self.group = ""
        if tag == "tr":
            self.cells = []
        if tag in ("td", "th"):
            self.cell, self.scope = Cell(), found.get("scope", "")
            self.cells.append(self.cell)
        if tag == "data":
            self.cell.value = float(found["value"])

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> inside {self.open[-3:]} at {self.getpos()}")
            return
        self.open.pop()
        if tag in ("td", "th"):
            self.cell = None
            if self.scope == "rowgroup":
                self.group = self.cells[0].text
        if tag == "tr" and self.caption:
            if self.open[-1] == "thead":
                self.columns = self.cells
            elif len(self.cells) > 1:
                key = self.group, self.cells[0].text
                if key in self.tables[self.caption]:
                    self.problems.append(f"{self.caption}: two rows {key}")
                names = [cell.text for cell in self.columns[1:]]
                self.tables[self.caption][key] = dict(zip(names, self.cells[1:], strict=True))

    def handle_data(self, data: str) -> None:
        data = data.replace("\N{NO-BREAK SPACE}", " ")
        self.text += data
        if self.cell is not None:
            self.cell.text += data


def parse(page: str) -> Parsed:
    """The page, parsed to its end."""
    parsed = Parsed()
    parsed.feed(page)
    parsed.close()
    if parsed.open:
        parsed.problems.append(f"not closed: {parsed.open}")
    return parsed


def assert_sound(parsed: Parsed) -> None:
    """Well-formed, self-contained, and usable without seeing it."""
    assert parsed.problems == []
    assert len(parsed.ids) == len(set(parsed.ids))
    assert parsed.targets <= set(parsed.ids)
    assert all(resource.startswith("data:") for resource in parsed.resources)
    assert "script" not in parsed.tags
    assert all(link.startswith("https://") for link in parsed.links)
    assert all(picture["alt"] and int(picture["width"]) > 0 for picture in parsed.pictures)
    assert parsed.tags.count("table") == parsed.tags.count("caption")
    assert parsed.headings[0] == 1 and parsed.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(parsed.headings, parsed.headings[1:]))
