"""A report as one self-contained HTML file: the Markdown one, its pictures inside."""

import base64
import html
import pathlib
import re

import markdown

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
p:has(img) { max-width: none; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; text-align: left; }
tbody tr:nth-child(even) { background: var(--band); }
td strong { color: var(--best); }
img { display: block; max-width: 100%; height: auto; margin: 1rem 0; padding: .5rem;
  background: #fff; border-radius: .5rem; }
code { font-size: .9em; }
"""


def write_html(path, text):
    """Writes `text`, Markdown whose images lie beside `path`, as one HTML file.

    Images become part of the file, tables scroll by themselves on narrow screens, and the colours
    follow the reader's light or dark setting. HTML in the text, as a data set's name may hold
    it, is shown as it is written; of images only PNGs below the report's folder are taken.
    """
    path = pathlib.Path(path)
    reader = markdown.Markdown(extensions=["tables"])
    reader.preprocessors.deregister("html_block")
    reader.inlinePatterns.deregister("html")
    body = reader.convert(text)
    body = re.sub(r'src="([^"]*)"', lambda m: f'src="{_inline(path.parent, m[1])}"', body)
    body = body.replace("<table>", '<div class="scroll"><table>')
    body = body.replace("</table>", "</table></div>")
    title = html.escape(text.lstrip("# ").splitlines()[0])
    path.write_text(
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n",
        encoding="utf-8",
    )


def _inline(folder, source):
    """A PNG of the report's folder as a data URI; "" for anything else."""
    image = (folder / html.unescape(source)).resolve()
    if image.suffix != ".png" or not image.is_relative_to(folder.resolve()) or not image.is_file():
        return ""
    return "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
