"""Parts of the page: numbers keep their digits, text is escaped, Markdown becomes HTML that loads nothing."""

import math

import pytest
from html_page import assert_sound, parse

from univ.show import markup
from univ.show.markup import Row, Section


def test_a_number_is_rounded_for_reading_and_kept_in_full():
    assert markup.number(1 / 3) == f'<data value="{1 / 3!r}">0.333</data>'
    assert markup.number(-19.3912) == '<data value="-19.3912">-19.391</data>'
    assert markup.number(1234.56) == '<data value="1234.56">1234.6</data>'
    assert markup.number(0.5, spread=0.25).endswith("<small>± 0.250</small>")
    assert markup.number(0.5, spread=math.nan) == markup.number(0.5)
    assert markup.number(math.nan) == "–"


def test_a_table_has_groups_scopes_and_a_caption():
    groups = {"a & b": [Row("x<y", ["1", "word"])], "": [Row("z", [markup.number(2.0), "–"])]}
    text = markup.table("t", "Title.", ["name", "n", "what"], groups, note="Note.", words=["what"])
    parsed = parse(text)
    assert parsed.problems == []
    assert set(parsed.tables["t"]) == {("a & b", "x<y"), ("a & b", "z")}
    assert parsed.tables["t"]["a & b", "z"]["n"].value == 2
    assert "<b>Title.</b> Note." in text
    assert '<td class="number">1</td><td>word</td>' in text
    with pytest.raises(ValueError, match="1 cells, expected 2"):
        markup.table("t", "Title.", ["name", "n", "what"], {"": [Row("x", ["1"])]})


def test_the_page_forbids_the_browser_to_load_anything():
    page = markup.page("A & B", "", [Section("one", "One", "<p>x</p>\n")], "")
    assert_sound(parse(page))
    assert "default-src 'none'; img-src data:" in page
    assert "<title>A &amp; B</title>" in page


README = """# Name

Text.

## Differences from the original

Some `--flags` and **bold** words.

```bash
# no heading
```

| where | *original* | here |
|---|---|---|
| `a`, c | <b>old</b> | new \\| newer |

### Finer

See [the paper](https://example.org/paper?a=1&b=2), [a file](docs/file.md), ![a picture](https://example.org/x.png).

## Citation

None.
"""


def test_a_section_ends_at_the_next_heading_of_its_level():
    section = markup.markdown_section(README, "differences from the Original")
    assert section.startswith("Some `--flags`")
    assert "# no heading" in section and "### Finer" in section
    assert "Citation" not in section
    assert markup.markdown_section(README, "Install") is None
    assert markup.markdown_section(README, "no heading") is None
    assert markup.markdown_section("# A\n", "A") == ""


def test_markdown_loads_nothing_and_shows_html_as_text():
    text = markup.markdown(markup.markdown_section(README, "Differences from the original"), "What differs.")
    parsed = parse(f"<main><h1>x</h1><h2>y</h2>{text}</main>")
    assert_sound(parsed)
    assert parsed.links == ["https://example.org/paper?a=1&b=2"]
    assert parsed.resources == []
    assert "<b>" not in text and "<b>old</b>" in parsed.text
    assert 'data-column="original"' in text  # a row is read as a paragraph on a phone
    assert text.count('role="row"') == 2 and text.count("<thead>") == 1
    assert "a picture" in parsed.text and "a file" in parsed.text
