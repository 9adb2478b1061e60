"""Methods × options × seeds × forget targets beside each other: `unlearnkit compare`."""
