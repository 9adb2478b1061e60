"""``report.html``: one page that needs nothing but itself, made from the record of a run."""

from unlearnkit.reporting.page.render import render_page, write_page

__all__ = ["render_page", "write_page"]
