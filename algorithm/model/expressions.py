"""Regular expressions out of a stranger's adapter configuration: checked before they are used.

Python's matcher goes back and tries again, which takes for ever with an expression like `(a+)+$`, and nothing can stop
it from outside. So what could take long is refused by its form. The expressions that peft and its users write are far
simpler.
"""

import re
import warnings

from acouslic.errors import AcouslicError
from acouslic.strict_json import shown

LONGEST = 2000
"""Characters."""
MOST_REPEATS = 6
"""Parts of variable length one after another: six take 0.1 s on a layer's name at worst, each further one longer."""
_LITERAL = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_KIND_OF_GROUP = re.compile(r"\(\?(?:P?<\w+>|[aiLmsux-]*:|<?[=!]|>)")


def check_expression(expression: str, where: str) -> None:
    """Raises AcouslicError unless `expression` is a regular expression that is matched in bounded time."""
    if len(expression) > LONGEST:
        raise AcouslicError(f"{where}: {shown(expression)} has {len(expression):,} characters, more than {LONGEST:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a set in a set may change its meaning one day
            re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise AcouslicError(f"{where}: {shown(expression)} is not a regular expression: {shown(str(error))}") from None
    if may_take_long(expression):
        raise AcouslicError(
            f"{where}: {shown(expression)} could take for ever to match: repeat no group that holds a repeat or a "
            f"choice, and not more than {MOST_REPEATS} parts one after another"
        )


def may_take_long(expression: str) -> bool:
    """Whether a repeated group holds a repeat or a choice, or one branch more than MOST_REPEATS repeats in a row."""
    text = _KIND_OF_GROUP.sub("(", _LITERAL.sub("x", expression))
    # Of each group that is open: the repeats of the branch that is read, the most of a branch before it, any choice.
    groups = [(0, 0, False)]
    for at, character in enumerate(text):
        here, most, has_choice = groups[-1]
        if character == "(":
            groups.append((0, 0, False))
        elif character == "|":
            groups[-1] = (0, max(here, most), True)
        elif character == ")" and len(groups) > 1:
            groups.pop()
            inside = max(here, most)
            if text[at + 1 : at + 2] in ("*", "+", "{") and (inside or has_choice):
                return True
            outer, outer_most, outer_choice = groups[-1]
            groups[-1] = (outer + inside, outer_most, outer_choice)
        elif character in "*+{?" and text[max(at - 1, 0) : at] not in ("*", "+", "?", "}"):
            groups[-1] = (here + 1, most, has_choice)
    here, most, _ = groups[0]
    return len(groups) > 1 or max(here, most) > MOST_REPEATS
