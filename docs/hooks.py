"""What MkDocs runs while it builds the site."""

import re


def on_page_content(html: str, **_: object) -> str:
    """Shows the roles of docstrings, such as ``:meth:`Index.open```, as code."""
    return re.sub(r":(?:attr|class|func|meth|mod):\s*<code>~?", "<code>", html)
