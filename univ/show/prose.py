"""A section of a Markdown file -> HTML for the report: nothing is loaded, HTML in it is shown as text."""

from pathlib import Path

import mistune
from markupsafe import Markup, escape

from univ.errors import plain


class _Renderer(mistune.HTMLRenderer):
    """HTML below a section's heading; tables of sentences, which narrow pages show row by row as paragraphs.

    Each cell of a table names its column for them, and the roles say that it stays a table there, which a changed
    display would hide from screen readers.
    """

    def __init__(self, name: str) -> None:
        super().__init__(escape=True)
        self.name = escape(name)
        self.columns: list[str] = []
        self.row: list[str] = []

    def heading(self, text: str, level: int, **attrs: object) -> str:
        return f"<h{max(3, level)}>{text}</h{max(3, level)}>\n"

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return text

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if not url.startswith(("https://", "http://")):
            return text  # a place in the repository: the page may lie anywhere
        return super().link(text, url, title)

    def table(self, text: str) -> str:
        return (
            f'<div class="scroll prose" role="region" tabindex="0" aria-label="{self.name}"><table role="table">\n'
            f"<caption><span>{self.name}</span></caption>\n{text}</table></div>\n"
        )

    def table_head(self, text: str) -> str:
        self.columns, self.row = self.row, []
        return f'<thead>\n<tr role="row">{text}</tr>\n</thead>\n'

    def table_row(self, text: str) -> str:
        self.row = []
        return f'<tr role="row">{text}</tr>\n'

    def table_cell(self, text: str, align: str | None = None, head: bool = False) -> str:
        self.row.append(text)
        if head:
            return f'<th role="columnheader" scope="col">{text}</th>'
        column = escape(Markup(self.columns[len(self.row) - 1]).striptags())
        return f'<td role="cell" data-column="{column}">{text}</td>'


def section(path: Path | None, title: str, name: str) -> Markup | None:
    """What stands below a heading, up to the next one of its level or above; None without the file or the heading.

    Args:
        title: the heading's text, in any case.
        name: what the tables of the section are about.
    """
    if path is None or not path.is_file():
        return None
    markdown = mistune.create_markdown(renderer=_Renderer(name), plugins=["table"])
    state = markdown.block.state_cls()
    state.process(plain(path.read_text(encoding="utf-8"), keep="\n\t"))
    markdown.block.parse(state, markdown.block.rules)
    levels = [token["attrs"]["level"] if token["type"] == "heading" else 7 for token in state.tokens]
    for start, token in enumerate(state.tokens):
        if token["type"] == "heading" and token["text"].lower() == title.lower():
            ends = (place for place in range(start + 1, len(levels)) if levels[place] <= levels[start])
            state.tokens = state.tokens[start + 1 : next(ends, None)]
            return Markup(markdown.render_state(state))
    return None
