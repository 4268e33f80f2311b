"""`cowengine NOUN VERB`: builds the parser from the nouns, runs one verb, and turns its outcome into an exit code.

An error of the engine or of the system is one line on stderr (a traceback only with --debug); a bug is a traceback.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from cowengine.version import __version__

if TYPE_CHECKING:
    from cowengine.cli.output import Output
    from cowengine.cli.parser import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (docs/cli.md has the table)."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words == ["--version"]:  # asked for often, by scripts: answered before anything else is imported
        print(f"cowengine {__version__}")
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name must not break a terminal that can't show it
    try:
        return _run(words)
    except KeyboardInterrupt:  # while the modules were still being imported
        sys.stderr.write("cowengine: interrupted\n")
        return 130


def _run(words: list[str]) -> int:
    from cowengine.cli import exits
    from cowengine.cli.output import Output
    from cowengine.cli.parser import UsageError, build_parser
    from cowengine.errors import CowEngineError

    try:
        options = build_parser().parse_args(words)
    except SystemExit as end:  # argparse after --help
        return int(end.code or 0)
    except UsageError as error:
        return _report_usage(error, as_json="--json" in words)
    output = Output(as_json=options.json, progress=getattr(options, "progress", "auto"))
    try:
        code = options.run(options, output)
        sys.stdout.flush()
    except BrokenPipeError:
        return _broken_pipe(output)
    except (CowEngineError, OSError, KeyboardInterrupt) as error:
        if options.debug:
            raise
        return _report(error, output)
    return exits.OK if code is None else int(code)


def _report(error: BaseException, output: Output) -> int:
    from cowengine.cli.exits import exit_code
    from cowengine.errors import CowEngineError

    code = exit_code(error)
    if isinstance(error, KeyboardInterrupt):
        message = "interrupted"
    elif isinstance(error, OSError) and not isinstance(error, CowEngineError) and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    else:
        message = str(error)
    fields = {"exit_code": code, "error": type(error).__name__}
    if isinstance(error, CowEngineError):
        fields["code"] = error.code
    output.log("error", message, **fields)
    return code


def _report_usage(error: UsageError, *, as_json: bool) -> int:
    from cowengine.cli.exits import USAGE
    from cowengine.cli.output import Output

    if not as_json:
        sys.stderr.write(error.usage + "\n")
    Output(as_json=as_json).log("error", error.message, exit_code=USAGE, error="UsageError")
    return USAGE


def _broken_pipe(output: Output) -> int:
    from cowengine.cli.exits import ERROR

    # Whoever read our output went away. For a list that is no news; for data it means that it is not complete.
    if output.carries_data:
        output.log("error", "the reader of stdout went away", exit_code=ERROR, error="BrokenPipeError")
    # Python flushes stdout once more at exit; let that go nowhere.
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    return ERROR


if __name__ == "__main__":
    sys.exit(main())
