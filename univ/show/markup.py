"""Numbers, tables, pictures and Markdown -> parts of one self-contained HTML page that asks nothing of the network.

Everything a reader needs lies in the page: style inline, pictures as data URIs, no script. It reads on a phone (wide
tables scroll inside themselves), in the dark and on paper.
"""

import base64
import html
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mistune

from univ.errors import plain

STYLE = """
:root { --page: #fff; --text: #1b2126; --soft: #59636b; --line: #d5dbdf; --band: #f2f5f6; --link: #00616b;
  --mark: #8a5a00; color-scheme: light dark; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #14181b; --text: #e4e8ea; --soft: #a3adb4; --line: #3a4349; --band: #1e2428; --link: #5cd0da;
    --mark: #e2b45c; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--text); font: 1rem/1.55 system-ui, sans-serif; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 0; z-index: 2; padding: .5rem 1rem; background: var(--page); }
header, main, footer { max-width: 62rem; margin: 0 auto; padding: 0 1rem; overflow-wrap: break-word; }
header { padding-top: 1.5rem; }
footer { margin-top: 3rem; padding-bottom: 2rem; color: var(--soft); font-size: .875rem; }
h1 { margin: 0 0 .5rem; font-size: 1.75rem; line-height: 1.2; }
h2 { margin: 2.75rem 0 .75rem; padding-top: .75rem; border-top: 2px solid var(--line); font-size: 1.3rem; }
h3 { margin: 1.75rem 0 .5rem; font-size: 1.05rem; }
h2, h3 { line-height: 1.3; scroll-margin-top: .5rem; }
p, li { max-width: 45rem; }
p { margin: .6rem 0; }
.soft, small { color: var(--soft); }
.mark { color: var(--mark); }
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
code { font: .875em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: .75rem; background: var(--band); }
nav ul { display: flex; flex-wrap: wrap; gap: 0 1.25rem; margin: 1rem 0 0; padding: 0; list-style: none; }
nav a { display: inline-block; padding: .35rem 0; }
dl { display: grid; grid-template-columns: fit-content(16rem) minmax(0, 1fr); gap: .2rem 1rem; margin: .75rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9375rem; font-variant-numeric: tabular-nums; }
caption { padding: 0 0 .5rem; text-align: left; color: var(--soft); }
caption b { color: var(--text); }
/* as wide as the window, not as the table: a caption longer than a phone would scroll away with the columns */
caption span { display: block; position: sticky; left: 0; width: min(45rem, 100vw - 2rem); }
th, td { padding: .35rem .75rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; font-weight: 600; }
tbody th { font-weight: 400; }
tr > :first-child { position: sticky; left: 0; padding-left: 0; background: var(--page); }
tr > :first-child:not([colspan]) { min-width: 7.5rem; max-width: 18rem; overflow-wrap: break-word; }
tbody th[scope=rowgroup] { padding: 1rem 0 .35rem; font-weight: 600; }
tbody th[scope=rowgroup] span { position: sticky; left: 0; }
.number { text-align: right; white-space: nowrap; }
.number small { display: block; font-size: .75rem; }
figure { margin: 1.5rem 0; }
figure .scroll { margin: 0 0 .4rem; }
figure img { display: block; height: auto; background: #fff; border-radius: 4px; }
figcaption { max-width: 45rem; color: var(--soft); font-size: .9375rem; }
details { margin: .5rem 0; padding: .1rem 0; border-bottom: 1px solid var(--line); }
details > :last-child { margin-bottom: 1rem; }
summary { padding: .45rem 0; cursor: pointer; overflow-wrap: anywhere; }
@media screen and (max-width: 40rem) {
  h1 { font-size: 1.45rem; }
  dl { display: block; }
  dd { margin: 0 0 .5rem; }
  details dl { display: grid; }
  details dd { margin: 0; }
  th, td { padding: .35rem .5rem; }
  tr > :first-child:not([colspan]) { max-width: 9.5rem; }
  /* sentences do not fit side by side: a row becomes a paragraph, its columns named before each part */
  .prose thead { position: absolute; left: -99rem; }
  .prose :is(table, tbody, tr, td) { display: block; }
  .prose td { padding: 0; border: 0; }
  .prose tr { padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .prose tr > td:first-child { position: static; max-width: none; font-weight: 600; }
  .prose td + td::before { content: attr(data-column) ": "; color: var(--soft); }
}
@media print {
  :root { --soft: #444; --line: #bbb; --link: #000; --mark: #000; color-scheme: light; }
  @page { margin: 16mm 14mm; }
  body { font-size: 9.5pt; line-height: 1.4; }
  header, main, footer { max-width: none; padding: 0; }
  nav, .skip { display: none; }
  h1 { font-size: 18pt; }
  h2 { margin-top: 16pt; font-size: 13pt; }
  h3 { font-size: 10.5pt; }
  h2, h3, caption { break-after: avoid; }
  .scroll { overflow: visible; break-inside: avoid; }
  table { width: 100%; font-size: 8.5pt; }
  .number small { display: inline; }
  th, td { padding: 2pt 6pt; }
  tr > :first-child { position: static; }
  caption span { position: static; width: auto; max-width: none; }
  tr, figure, dl { break-inside: avoid; }
  figure img { min-width: 0 !important; width: auto !important; max-width: 100% !important; max-height: 105mm; }
}
"""

NOTHING = "–"  # in cells of what there is not


def text(value: object) -> str:
    """A value as HTML text."""
    return html.escape(plain(value, keep="\n\t"))


def path(value: object) -> str:
    """A path or name that breaks after / and _ where a line is full."""
    return re.sub(r"([/_])(?=.)", r"\1<wbr>", text(value))


def code(value: object) -> str:
    """A value as code."""
    return f"<code>{text(value)}</code>"


def number(value: float, *, digits: int = 3, spread: float = math.nan) -> str:
    """A number rounded for reading, all its digits in the element's `value`; – for nan.

    Args:
        value: what to show.
        digits: decimals; fewer from 100 on.
        spread: standard deviation, shown small below.
    """
    if math.isnan(value):
        return NOTHING
    shown = digits if abs(value) < 100 else min(digits, 1)
    small = "" if math.isnan(spread) else f" <small>± {spread:.{shown}f}</small>"
    return f'<data value="{float(value)!r}">{value:.{shown}f}</data>{small}'


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: its header, plain text.
        cells: HTML.
    """

    name: str
    cells: Sequence[str]


def table(
    name: str,
    title: str,
    columns: Sequence[str],
    groups: Mapping[str, Sequence[Row]],
    *,
    note: str = "",
    words: Sequence[str] = (),
) -> str:
    """A table that scrolls inside itself where it is wider than the page.

    Args:
        name: id of the caption, once per page.
        title, note: the caption, plain text: what the table shows, then how to read it.
        columns: headers, the first one above the rows' names; plain text.
        groups: name of a group of rows (empty for none) -> its rows.
        words: columns that hold words; all others hold numbers, aligned to the right.
    """
    kinds = ["" if column in words else ' class="number"' for column in columns[1:]]
    head = "".join(f'<th scope="col"{kind}>{text(column)}</th>' for column, kind in zip(columns, ["", *kinds]))
    body = []
    for group, rows in groups.items():
        lines = []
        if group:
            lines.append(f'<tr><th scope="rowgroup" colspan="{len(columns)}"><span>{text(group)}</span></th></tr>')
        for row in rows:
            if len(row.cells) != len(kinds):
                raise ValueError(f"{name}: row {row.name!r} has {len(row.cells)} cells, expected {len(kinds)}")
            cells = "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row.cells, kinds))
            lines.append(f'<tr><th scope="row">{path(row.name)}</th>{cells}</tr>')
        body.append("<tbody>\n" + "\n".join(lines) + "\n</tbody>")
    caption = f"<b>{text(title)}</b>" + (f" {text(note)}" if note else "")
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{name}">\n<table>\n'
        f'<caption><span id="{name}">{caption}</span></caption>\n'
        f"<thead><tr>{head}</tr></thead>\n" + "\n".join(body) + "\n</table>\n</div>\n"
    )


def picture(data: bytes, kind: str, size: tuple[int, int], caption: str, alt: str, *, wide: bool = False) -> str:
    """A picture inside the page.

    Args:
        data: the file's bytes.
        kind: media type, such as image/svg+xml.
        size: width and height in CSS pixels.
        caption, alt: plain text; `alt` for those who do not see it.
        wide: always in its own size, scrolling where the page is narrower; else it shrinks to two thirds first.
    """
    width, height = size
    least = width if wide else 65 * width // 100
    style = f"width: 100%; min-width: {least}px; max-width: {width if wide else 5 * width // 4}px"
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return (
        f'<figure>\n<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}">'
        f'<img src="{source}" width="{width}" height="{height}" style="{style}" alt="{text(alt)}"></div>\n'
        f"<figcaption>{text(caption)}</figcaption>\n</figure>\n"
    )


def collapsed(summary: str, body: str) -> str:
    """A part that opens when its summary (HTML) is chosen."""
    return f"<details>\n<summary>{summary}</summary>\n{body}</details>\n"


def definitions(items: Mapping[str, str]) -> str:
    """Terms (plain text) and what they are (HTML), in two columns."""
    return "<dl>\n" + "".join(f"<dt>{text(term)}</dt><dd>{what}</dd>\n" for term, what in items.items()) + "</dl>\n"


def bullets(items: Sequence[str]) -> str:
    """A list of HTML items."""
    return "<ul>\n" + "".join(f"<li>{item}</li>\n" for item in items) + "</ul>\n" if items else ""


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading; `name` is its id, `body` HTML."""

    name: str
    title: str
    body: str


def page(title: str, lead: str, sections: Sequence[Section], foot: str) -> str:
    """The whole document; the policy in its head lets a browser load nothing from anywhere.

    Args:
        title: plain text.
        lead, foot: HTML before the contents and at the end.
        sections: in order.
    """
    contents = "".join(f'<li><a href="#{part.name}">{text(part.title)}</a></li>\n' for part in sections)
    body = "".join(
        f'<section aria-labelledby="{part.name}">\n<h2 id="{part.name}">{text(part.title)}</h2>\n'
        f"{part.body}</section>\n"
        for part in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the results</a>
<header>
<h1>{text(title)}</h1>
{lead}<nav aria-label="Contents"><ul>
{contents}</ul></nav>
</header>
<main id="content">
{body}</main>
<footer>
{foot}</footer>
</body>
</html>
"""


# ---------------------------------------------------------------------------------------------------- Markdown


class _Renderer(mistune.HTMLRenderer):
    """HTML that fits into a section: headings below its own, nothing loaded, links only to other sites."""

    def heading(self, text: str, level: int, **attrs: object) -> str:
        return f"<h{max(3, level)}>{text}</h{max(3, level)}>\n"

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return text

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if not url.startswith(("https://", "http://")):
            return text  # a place in the repository: the page may lie anywhere
        return super().link(text, url, title)


def _prose_table(name: str, rows: str) -> str:
    """A table of sentences: each cell knows its column, for narrow pages that show a row as a paragraph.

    The roles say that it stays a table there, which a changed display would hide from screen readers.
    """
    columns = re.findall(r"<th[^>]*>(.*?)</th>", rows, flags=re.DOTALL)
    labels = [html.escape(re.sub(r"<[^>]*>", "", column)) for column in columns]

    def row(match: re.Match[str]) -> str:
        column = iter(labels)
        return re.sub(r"<td", lambda _: f'<td role="cell" data-column="{next(column, "")}"', match[0])

    rows = re.sub(r"<tr>.*?</tr>", row, rows, flags=re.DOTALL)
    rows = re.sub(r"<th(?=[ >])", '<th role="columnheader" scope="col"', rows).replace("<tr>", '<tr role="row">')
    return (
        f'<div class="scroll prose" role="region" tabindex="0" aria-label="{text(name)}"><table role="table">\n'
        f"<caption><span>{text(name)}</span></caption>\n{rows}</table></div>\n"
    )


def markdown(source: str, name: str) -> str:
    """Markdown as HTML; HTML in it is shown as text.

    Args:
        source: the Markdown.
        name: what its tables are about.
    """
    convert = mistune.create_markdown(renderer=_Renderer(escape=True), plugins=["table"])
    convert.renderer.register("table", lambda _, rows: _prose_table(name, rows))
    return str(convert(source))


def markdown_section(source: str, title: str) -> str | None:
    """The Markdown below the heading `title`, up to the next heading of its level or above; None if there is none."""
    lines = source.splitlines()
    fenced = list(itertools.accumulate(line.lstrip().startswith("```") for line in lines))
    headings = [
        (number, len(match[1]), match[2].strip())
        for number, line in enumerate(lines)
        if fenced[number] % 2 == 0 and (match := re.fullmatch(r"(#{1,6})\s+(.*?)\s*#*", line))
    ]
    for position, (start, level, found) in enumerate(headings):
        if found.lower() == title.lower():
            end = next((line for line, other, _ in headings[position + 1 :] if other <= level), len(lines))
            return "\n".join(lines[start + 1 : end]).strip()
    return None
