"""`python -m training COMMAND ...`: from the raw release to a submitted artifact."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # As in algorithm/__main__.py.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import importlib
import sys

from acouslic.errors import AcouslicError
from acouslic.interrupts import Interrupts
from acouslic.missing_package import missing_package_named
from acouslic.printable import one_line
from acouslic.streams import set_up_streams
from algorithm.process.environment import prepare_for_torch

# Module and one line of help by command. A module is imported only when its command runs: `generate` and `split` work
# without torch.
COMMANDS = {
    "generate": ("training.phantom.generate", "draw blind sweeps of our own making, as a release"),
    "prepare": ("training.release.prepare", "raw release to the cache that training reads"),
    "split": ("training.release.split", "divide the cases: the published split, or folds by subject"),
    "fit": ("training.fit", "train one member"),
    "ensemble": ("training.ensemble", "raw release to a trained ensemble: prepare, split, fit every fold"),
    "table": ("training.table", "every row of the paper's table, five trials each"),
    "report": ("training.report", "judge finished runs on the cases they did not learn from"),
    "export": ("training.export.write_artifact", "trained members to an artifact"),
    "calibrate": (
        "training.export.calibrate_artifact",
        "choose an artifact's temperatures, reading and thresholds on a cache's cases",
    ),
    "distil": ("training.export.distil", "a small network learns what an artifact says, and becomes its gate"),
    "head": ("training.export.add_case_head", "a head that judges frames with their whole case in view, if it wins"),
    "precision": ("training.export.precision", "measure half precision on sweeps, for an artifact's manifest"),
    "import": ("training.export.import_published", "checkpoints of the published code to an artifact"),
    "card": ("training.export.model_card", "the model card of an artifact, from its manifest"),
    "pack": ("training.export.pack", "an artifact to model.tar.gz"),
    "demo": ("training.demo", "rebuild model/demo"),
}

_GO_ON = ("prepare", "fit", "ensemble", "table", "distil", "demo")
"""Commands that find again what they had done when they were stopped."""
_LONGEST_MESSAGE = 4000


def usage() -> str:
    """The list of commands."""
    lines = ["usage: acouslic train COMMAND [--help] ...   or   python -m training COMMAND ...", ""]
    lines += [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run one command; an AcouslicError becomes the last line of stderr and exit code 1, SIGTERM 143, Ctrl-C 130."""
    set_up_streams()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    command, *rest = arguments
    if command not in COMMANDS:
        print(f"unknown command {command!r}: expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    prepare_for_torch()
    interrupts = Interrupts()
    try:
        interrupts.install()
        with missing_package_named("training", "training"):
            with interrupts.held():
                module = importlib.import_module(COMMANDS[command][0])
            code: int = module.main(rest)
        interrupts.end()
        return code
    except AcouslicError as error:
        print(one_line(" ".join(str(error).split()), _LONGEST_MESSAGE), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        number = interrupts.number or signal.SIGINT
        name = signal.Signals(number).name
        goes_on = "what was complete is kept, and the same command goes on from there"
        says = goes_on if command in _GO_ON else "the same command begins anew"
        print(f"stopped by {name}: {says}", file=sys.stderr)
        return 128 + number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
