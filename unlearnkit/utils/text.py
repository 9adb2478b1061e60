"""How numbers are written, so that the same number looks the same everywhere."""


def percent(share: float) -> str:
    """Write a share of one as a percentage of three digits.

    Example:
        >>> percent(0.02998), percent(1.0), percent(1e-5)
        ('3 %', '100 %', '0.001 %')
    """
    return f"{100 * share:.3g} %"
