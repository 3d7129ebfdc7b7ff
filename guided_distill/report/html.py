"""A report as one self-contained HTML file: the Markdown one, its pictures inside."""

import base64
import html
import pathlib
import re

import markdown
from PIL import Image

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --paper: #fbfbfa; --line: #d9dcdf;
  --soft: #6a7178; --band: #f0f1f2; --best: #0a6b3d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e8; --paper: #15181b;
  --line: #343a40; --soft: #9aa2aa; --band: #1e2226; --best: #5fd39b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.2rem clamp(.8rem, 3vw, 2.5rem) 4rem;
  color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: clamp(1.5rem, 4vw, 2.2rem); line-height: 1.2; }
h2 { margin-top: 2.6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
p { max-width: 46rem; }
.scroll { overflow-x: auto; margin: 1rem 0; max-width: none; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; text-align: left; }
tr { background: var(--paper); }
tbody tr:nth-child(even) { background: var(--band); }
th:first-child, td:first-child { position: sticky; left: 0; background: inherit; }
.scroll:not(:has(tr > :nth-child(3))) td { white-space: normal; overflow-wrap: anywhere; }
td strong { color: var(--best); }
.figure { padding: .6rem; background: #fff; border: 1px solid var(--line); border-radius: .6rem; }
img { display: block; height: auto; }
@media (max-width: 48rem) { th, td { padding: .3rem .45rem; } }
@media (min-width: 48rem) { img { width: auto; max-width: 100%; margin: auto; } }
@media (prefers-color-scheme: dark) { .figure { background: #e2e5e8; border: 0; }
  img { mix-blend-mode: multiply; } }
code { font-size: .9em; }
"""
TABLE = '<div class="scroll" tabindex="0">'
READABLE = 0.62  # CSS pixels to a figure's pixel where it scrolls: letters of 9 pixels and more
PHONE = 340  # CSS pixels; what is no wider keeps its size


def write_html(path, text, opening=""):
    """Writes `text`, Markdown whose images lie beside `path`, as one HTML file.

    Images become part of the file, tables and images scroll by themselves on narrow screens, and
    the colours follow the reader's light or dark setting. HTML in the text, as a data set's name
    may hold it, is shown as it is written; of images only PNGs below the report's folder are taken.
    `opening` is HTML that stands before the first table.
    """
    path = pathlib.Path(path)
    reader = markdown.Markdown(extensions=["tables"])
    reader.preprocessors.deregister("html_block")
    reader.inlinePatterns.deregister("html")
    body = reader.convert(text)
    body = re.sub(r'src="([^"]*)"', lambda m: _inline(path.parent, m[1]), body)
    body = body.replace("<p><img", '<p class="scroll figure" tabindex="0"><img')
    body = body.replace("<table>", f"{TABLE}<table>").replace("</table>", "</table></div>")
    before, table, after = body.partition(TABLE)
    body = f"{before}{opening}{table}{after}"
    title = html.escape(text.lstrip("# ").splitlines()[0])
    path.write_text(
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n",
        encoding="utf-8",
    )


def _inline(folder, source):
    """`src` and `width` of a PNG of the report's folder, as a data URI; no source for others."""
    path = (folder / html.unescape(source)).resolve()
    if path.suffix != ".png" or not path.is_relative_to(folder.resolve()) or not path.is_file():
        return 'src=""'
    with Image.open(path) as image:
        width = max(round(READABLE * image.width), min(image.width, PHONE))
    return f'src="{png_uri(path.read_bytes())}" width="{width}"'


def png_uri(data):
    """The bytes of a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(data).decode()
