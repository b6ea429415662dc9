"""The one error class whose message is for the person who started the program."""


class AcouslicError(Exception):
    """Something the user can mend: a missing file, a damaged image, a wrong setting.

    The message is one sentence on one line that says what is wrong, where (a path, a field, a tensor), what was
    expected and what was found, and, where it is not obvious, what to do. The command line prints it as the last
    line of stderr and exits with 1; the server answers 500 with it.
    """

    exit_code = 1
    """Of a program that ends with it."""


class ShortageError(AcouslicError):
    """What the machine lacks just now, such as room on a disk: the same input may do later."""
