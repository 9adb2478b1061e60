"""``report.html``: one self-contained page, made from the record of a run."""

from unlearnkit.reporting.page.render import render_page, write_page

__all__ = ["render_page", "write_page"]
