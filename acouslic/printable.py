"""Text from outside (file names, headers, keys, other programs) made safe to print: no control character passes raw.

An escape sequence in a file's name could otherwise recolour a terminal, forge a line of a log or hide a failure.
"""


def printable(text: str) -> str:
    """`text` with every character that `str.isprintable` refuses (control, bidirectional, unpaired surrogate, line end)
    escaped as in Python: `\\n`, `\\x1b`, `\\u202e`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def printable_lines(text: str) -> str:
    """As `printable`, but line ends stay: for a traceback, whose lines are its own."""
    return "\n".join(printable(line) for line in text.split("\n"))


def one_line(text: str, longest: int) -> str:
    """`text` as one line of at most `longest` printable characters; what is longer ends in three dots."""
    # Cut first: a message may quote a name of a megabyte.
    line = printable(text[: 2 * longest])
    return line if len(line) <= longest else f"{line[: longest - 3]}..."
