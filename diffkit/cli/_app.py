"""The ``diffkit`` command: pick the command, run it, and turn errors into one line and an exit code."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Collection, Sequence
from functools import reduce
from operator import getitem
from typing import Literal

from cyclopts import App, CycloptsError, Group

from diffkit._version import __version__
from diffkit.cli.parsing import importing
from diffkit.cli.parsing.commands import built_in, load, table
from diffkit.cli.parsing.docstrings import plain
from diffkit.cli.parsing.request import as_toml, look, resolve
from diffkit.cli.parsing.signature import plain_text
from diffkit.cli.parsing.spelling import as_cli_flags
from diffkit.cli.shared.device import check_device
from diffkit.cli.shared.extras import check_extras
from diffkit.cli.shared.paths import check_not_its_own_input
from diffkit.cli.shared.torch_errors import torch_errors
from diffkit.errors import DiffkitError, OptionError
from diffkit.registry import Entry
from diffkit.registry.listing import docstring_of, summary_of
from diffkit.runtime.output import log, printable, results, safe_output, show

DONE, FAILED, REFUSED, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141
"""Exit codes: done; an error in any of the code, which is Python's own code; a command that cannot be done; stopped by
Ctrl-C; the reader of the results went away.
"""

_PLAIN: Literal["plaintext"] = "plaintext"
"""Form of all help texts, each of whose characters is shown; a command's help is printed without the root's form."""
_HELP = ("-h", "--help")
_VERSION = "--version"
_EPILOGUE = (
    "diffkit COMMAND --help lists the options of a command, and those of the parts that are named before it. "
    "--import FILE.py runs a file that registers parts of yours first. "
    "--debug shows where an error came from. "
    "Exit codes: 0 done, 1 an error inside diffkit or a part, 2 a command that cannot be done, 130 stopped by Ctrl-C, "
    "141 the reader of the output went away."
)


def run(argv: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    with safe_output() as out:
        code = _run(argv)
        return code or _delivered(out.lost)


def _run(argv: Sequence[str]) -> int:
    debug = "--debug" in argv
    words = [word for word in argv if word != "--debug"]
    try:
        words, files = importing.split(words)
        importing.run(files)
        _dispatch(words)
    except DiffkitError as error:
        if debug:
            log(traceback.format_exc())
        if _logs_first(str(error)):
            log(f"error: {_on_one_line(str(error), words)}")
        return REFUSED
    except KeyboardInterrupt:
        log("interrupted")
        return INTERRUPTED
    except SystemExit as end:  # commands and signals end so with another code than 0
        if end.code:
            raise
        log("error: a part or module of others called sys.exit(), so the command is not done")
        return FAILED
    except OSError as error:  # a full disk, a name that is too long, a folder that vanished
        if debug:
            log(traceback.format_exc())
        log(f"error: {_on_one_line(_reason(error), words)}")
        return REFUSED
    return DONE


def _on_one_line(text: str, words: Sequence[str]) -> str:
    """The text, in which no name that was typed, such as that of a folder, breaks a line."""
    for word in words:
        name = word.partition("=")[2] if word.startswith("--") else word
        if "\n" in name:
            text = text.replace(name, printable(name))
    return text


def _delivered(lost: Exception | None) -> int:
    """Exit code of a command that is done, by whether its results could be printed; ``diffkit list | head`` is fine."""
    if lost is None:
        return DONE
    if isinstance(lost, BrokenPipeError):
        return BROKEN_PIPE
    why = lost.strerror if isinstance(lost, OSError) else lost
    log(f"error: standard output cannot be written: {why}; what was printed there is lost")
    return REFUSED


def _reason(error: OSError) -> str:
    where = "" if error.filename is None else f": {error.filename}"
    hint = "; what was written stays, and the same command goes on where it can" if error.errno == errno.ENOSPC else ""
    return f"{error.strerror or error}{where}{hint}"


def _logs_first(text: str) -> bool:
    """False in a process whose error another one of the same job has said already."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from diffkit.runtime.distributed import is_first_to_log  # which needs torch

    return is_first_to_log(text)


def _dispatch(words: Sequence[str]) -> None:
    commands = built_in()
    root, name = _parsed(commands, words)
    if name not in commands:
        commands = table()
        root, name = _parsed(commands, words)
    if name in commands:
        _run_command(name, commands[name], root, words[len(name.split()) :])
    elif _VERSION in words[:1]:
        show(__version__)
    elif set(words[-1:]) & set(_HELP) or not words:
        _print_overview(root, words)
    else:
        _refuse_command(root, words, name)


def _run_command(name: str, command: Entry, root: App, words: Sequence[str]) -> None:
    module, app = load(command), reduce(getitem, name.split(), root)
    request = look(name, module.SPEC, words)
    if set(words) & set(_HELP):
        request.sign_for_help(app)
        app.help = "\n\n".join(" ".join(each.split()) for each in plain(docstring_of(command.value)).split("\n\n"))
        with results():
            app.help_print([])
        return
    with as_cli_flags(request.options):
        parsed, print_only = resolve(request, app)
        if print_only:
            show(as_toml(request.spec, parsed).removesuffix("\n"))
            return
        check_not_its_own_input(request.options, parsed)
        check_device(parsed.values.get("device"))
        check_extras(name, parsed)
        with torch_errors(request.options):
            module.run(parsed)


def _refuse_command(root: App, words: Sequence[str], name: str) -> None:
    """Raise `OptionError` for a word that is no command."""
    try:
        root.parse_args(words, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise OptionError(plain_text(error)) from error
    among = [each for each in table() if each.startswith(f"{name} ")]
    raise OptionError(f"diffkit {name} needs a command: {' or '.join(among)}")


def _parsed(commands: Collection[str], words: Sequence[str]) -> tuple[App, str]:
    """The application with these commands, none of which is imported, and the name of the one to run."""
    root = _root(commands)
    chain, *_ = root.parse_commands(words)
    return root, " ".join(word for word in chain if word not in (*_HELP, _VERSION))


def _root(commands: Collection[str]) -> App:
    """The application with these commands."""
    root = App(
        name="diffkit",
        help="Diffusion models from small named parts: compose, train, sample and score.",
        usage="Usage: diffkit COMMAND [OPTIONS]",
        help_format=_PLAIN,
        help_epilogue=_EPILOGUE,
        version_flags=(_VERSION,),
        version=__version__,
    )
    options = Group("Options", sort_key=1)
    for flag in ("--help", _VERSION):
        root[flag].group = options
    for name in commands:
        *group, last = name.split()
        app = root
        for word in group:
            if word not in app:
                app.command(App(name=word, help=", ".join(each for each in commands if each.startswith(f"{word} "))))
            app = app[word]
        app.command(App(name=last, help_format=_PLAIN, version_flags=(), help_epilogue=""))
    return root


def _print_overview(root: App, words: Sequence[str]) -> None:
    """Print the page of ``diffkit --help``: commands with what they do, read from their files."""
    for name, command in table().items():
        reduce(getitem, name.split(), root).help = summary_of(command)
    with results():
        root.help_print([word for word in words if word not in _HELP])


__all__ = ["BROKEN_PIPE", "DONE", "FAILED", "INTERRUPTED", "REFUSED", "run"]
