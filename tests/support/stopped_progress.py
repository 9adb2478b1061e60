"""Progress of a job that is stopped in the middle, as by Ctrl-C."""


def stopping_at(what, number):
    """Raise KeyboardInterrupt at an item, counted from 0, of the progress bar of this name."""

    def progress(items, shown, total):
        del total
        for i, item in enumerate(items):
            if shown == what and i == number:
                raise KeyboardInterrupt
            yield item

    return progress
