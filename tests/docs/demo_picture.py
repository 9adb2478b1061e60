"""Makes the README's picture of a terminal from its text of the demonstration.

python -m tests.docs.demo_picture > docs/pictures/demo.svg
"""

import html
import re
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
LINE, LEFT, TOP, WIDTH = 18, 18, 62, 700
HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="t">
  <title id="t">A terminal in which unlearnkit demo has run; the same text stands below the picture</title>
  <style>
    text {{ font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #e2e8f0; white-space: pre }}
    .command {{ fill: #90cdf4 }}
    .row {{ animation: appear .2s both }}
    @keyframes appear {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }}
    @media (prefers-reduced-motion: reduce) {{ .row {{ animation: none }} }}
  </style>
  <rect width="{width}" height="{height}" rx="8" fill="#1a202c"/>
  <circle cx="20" cy="18" r="6" fill="#fc8181"/>
  <circle cx="40" cy="18" r="6" fill="#f6e05e"/>
  <circle cx="60" cy="18" r="6" fill="#68d391"/>
  <text x="{left}" y="50" class="command">$ unlearnkit demo</text>
"""


def picture():
    (text,) = re.findall(r"^```text\n(forgetting the digit.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    lines = text.rstrip().splitlines()
    rows = [
        f'  <text x="{LEFT}" y="{TOP + LINE * (number + 1)}" class="row" '
        f'style="animation-delay:{0.8 + 0.25 * number:.2f}s">'
        f"{html.escape(line)}</text>"
        for number, line in enumerate(lines)
        if line.strip()
    ]
    height = TOP + LINE * (len(lines) + 1)
    return "\n".join([HEAD.format(width=WIDTH, height=height, left=LEFT), *rows, "</svg>\n"])


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    sys.stdout.write(picture())
