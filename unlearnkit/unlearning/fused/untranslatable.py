"""Why a rule is not compiled."""


class Untranslatable(Exception):  # noqa: N818 - no error: torch runs such a rule as it is
    """A rule does something that has no translation; the message says what."""
