"""The ``hardpix`` command: names its sub-commands and imports nothing heavy before one is chosen."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

import hardpix

USAGE = """\
hardpix: fair, repeatable comparisons of hard-pixel methods in semantic segmentation

usage: hardpix COMMAND [ARGUMENTS]

  train      train one run, or a sweep:  hardpix train method=hardness seed=1
                                         hardpix train -m loss=cross_entropy,ohem seed=0,1
  sweep      a resumable study:          hardpix sweep NAME_OR_OVERRIDES, hardpix sweep status NAME_OR_OVERRIDES
             runs from each other:       hardpix sweep error_prediction data=camvid seed=1
  evaluate   score a run:                hardpix evaluate RUN --split test inference=slide
  predict    label images with a run:    hardpix predict RUN IMAGES... --out DIR
  export     a run as an ONNX file:      hardpix export RUN --onnx FILE
  table      compare runs:               hardpix table RUNS... --rows method,loss
             with a paper's numbers:     hardpix table lwm/II RUNS...
  compare    what runs differ in:        hardpix compare RUN RUN
  figure     draw from runs:             hardpix figure sweep RUNS... --x method.alpha --out FILE.pdf
  page       one page of runs:           hardpix page RUNS... -o FILE.html
  dashboard  the plots in W&B:           hardpix dashboard --project P --entity E
  data       prepare a data set:         hardpix data prepare NAME --from FILES --to DIR
             look over it, look at it:   hardpix data check data=NAME, hardpix data show data=NAME --out FILE.png
             pack it for fast loading:   hardpix data pack data=NAME --out DIR
             heights and normals:        hardpix data hn-labels data=NAME --out DIR
  list       what can be chosen:         hardpix list methods, hardpix list rows hl/6
  completion TAB in your shell:          hardpix completion install
  demo       the tour: a small sweep on synthetic rooms, a table and a page with pictures

hardpix COMMAND --help says more; hardpix --version prints the version.
Settings are Hydra overrides (group=choice, key.sub=value); hardpix train --cfg job shows them all.
"""


# Disk full, quota, read-only, no rights, a fault of the disk, a name too long.
WRITE_ERRORS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "ENAMETOOLONG")
    if hasattr(errno, name)
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 1 a run failed, 2 the request was wrong,
    3 the training diverged, 128 + n a signal)."""
    arguments = sys.argv[1:] if argv is None else argv
    if os.environ.get("HARDPIX_JOB") and os.environ.get("LOCAL_RANK", "0") != "0":
        return _reported(_join, arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] in ("-V", "--version", "version"):
        print(f"hardpix {hardpix.__version__}")
        return 0
    name, rest = FORMER.get(arguments[0], arguments[0]), arguments[1:]
    if name != arguments[0]:
        print(f"note: hardpix {arguments[0]} is now hardpix {name}", file=sys.stderr)
    if name not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(COMMANDS)}"
        print(f"hardpix: there is no command {name!r}; {hint}", file=sys.stderr)
        return 2
    return _reported(COMMANDS[name], rest)


def _reported(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command; a fault of the user becomes its own sentence, a traceback only with HYDRA_FULL_ERROR=1."""
    full = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    try:
        return _exit_on_signal(command, arguments) if command in TRAINING else command(arguments)
    except BrokenPipeError:
        return 1
    except Exception as error:
        from hardpix.train import machine
        from hardpix.types import HardpixError  # only now: a completion must be quick

        if not full and (ailing := machine.explain(error)) is not None:
            print(f"hardpix: {ailing}", file=sys.stderr)
            return 1
        if not full and isinstance(error, OSError) and error.errno in WRITE_ERRORS:
            print(f"hardpix: {_write_error(error)}", file=sys.stderr)
            return 2
        if full or not isinstance(error, HardpixError):
            raise
        print(f"hardpix: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("hardpix: interrupted", file=sys.stderr)
        return 130


def _exit_on_signal(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    from hardpix.train.signals import exit_on_signal

    with exit_on_signal():
        return command(arguments)


def _write_error(error: OSError) -> str:
    from pathlib import Path

    from hardpix.record import free_space

    place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else Path()
    return (
        f"{place}: {error.strerror} ({free_space(place)}); finished work is kept; "
        "free some space or fix the rights and rerun the same command"
    )


def _train(arguments: list[str]) -> int:
    from hardpix.cli.train import launch

    return launch(arguments)


def _join(arguments: list[str]) -> int:
    """A further process of a run: Lightning starts it with the command line of the first one."""
    from pathlib import Path

    from hardpix.train.train import join

    join(Path(os.environ["HARDPIX_JOB"]))
    return 0


def _sweep(arguments: list[str]) -> int:
    from hardpix.cli.sweep import main

    return main(arguments)


def _evaluate(arguments: list[str]) -> int:
    from hardpix.evaluate import main

    return main(arguments)


def _predict(arguments: list[str]) -> int:
    from hardpix.predict import main

    return main(arguments)


def _export(arguments: list[str]) -> int:
    from hardpix.export import main

    return main(arguments)


def _table(arguments: list[str]) -> int:
    from hardpix.cli.tables import parse, start

    return start(parse(arguments))


def _compare(arguments: list[str]) -> int:
    from hardpix.cli.compare import main

    return main(arguments)


def _figure(arguments: list[str]) -> int:
    from hardpix.cli.figures import main

    return main(arguments)


def _page(arguments: list[str]) -> int:
    from hardpix.cli.reports import main

    return main(arguments)


def _dashboard(arguments: list[str]) -> int:
    from hardpix.cli.reports import dashboard

    return dashboard(arguments)


def _data(arguments: list[str]) -> int:
    from hardpix.cli.data import main

    return main(arguments)


def _list(arguments: list[str]) -> int:
    from hardpix.cli.list import main

    return main(arguments)


def _completion(arguments: list[str]) -> int:
    from hardpix.cli.completion_scripts import completion

    return completion(arguments)


def _demo(arguments: list[str]) -> int:
    from hardpix.cli.demo import main

    return main(arguments)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "sweep": _sweep,
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
    "table": _table,
    "compare": _compare,
    "figure": _figure,
    "page": _page,
    "dashboard": _dashboard,
    "data": _data,
    "list": _list,
    "completion": _completion,
    "demo": _demo,
}

FORMER = {"chain": "sweep", "report": "page"}  # earlier names of commands
TRAINING = (_train, _sweep, _join)  # a signal ends them with its status, from the first moment on

if __name__ == "__main__":
    sys.exit(main())
