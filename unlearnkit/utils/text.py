"""How numbers are written, so that the same number looks the same everywhere."""


def percent(share: float) -> str:
    """Write a share of one as a percentage of three digits.

    Examples:
        >>> percent(0.02998), percent(1.0), percent(1e-5)
        ('3 %', '100 %', '0.001 %')
    """
    return f"{100 * share:.3g} %"


def number(value: float | None) -> str:
    """Write a number; "–" for None.

    Examples:
        >>> number(0.5), number(1e-5), number(None)
        ('0.500', '1e-05', '–')
    """
    if value is None:
        return "–"
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"
