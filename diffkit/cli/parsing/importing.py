"""``--import FILE.py``: Python files that register parts, run before the command looks for parts by name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from diffkit.errors import OptionError, failure

FLAG = "--import"


def split(words: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Return a command line without the flag, and the files it names.

    Raises:
        OptionError: The flag stands last, without a file.
    """
    rest, files = [], []
    given = iter(words)
    for word in given:
        if word == FLAG or word.startswith(f"{FLAG}="):
            file = next(given, "") if word == FLAG else word.removeprefix(f"{FLAG}=")
            if not file:
                raise OptionError(f"{FLAG} needs a Python file that registers parts, such as {FLAG} parts.py")
            files.append(Path(file))
        else:
            rest.append(word)
    return rest, files


def run(files: Sequence[Path]) -> None:
    """Run each file once, as a module that is named as the file is; modules next to it can be imported.

    Raises:
        OptionError: A file is not there, its name is not a module's or another module's, or it fails.
    """
    for file in files:
        path = file.resolve()
        if path.suffix != ".py" or not path.is_file():
            raise OptionError(f"{FLAG} {file} is not a Python file")
        if "." in path.stem:
            raise OptionError(f"{FLAG} {file} has a dot in its name, as no module has; give the file another name")
        known = sys.modules.get(path.stem)
        if known is not None and getattr(known, "__file__", None) == str(path):
            continue
        other = importlib.util.find_spec(path.stem) if known is None else None
        if known is not None or (other is not None and other.origin != str(path)):
            raise OptionError(f"{FLAG} {file} has the name of another module; give the file another name")
        _import(file, path)


def _import(file: Path, path: Path) -> None:
    sys.path.insert(0, str(path.parent))
    importlib.invalidate_caches()
    try:
        with redirect_stdout(sys.stderr):  # standard output is for what the command prints
            importlib.import_module(path.stem)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the file may raise any error; sys.exit() too
        raise OptionError(f"{FLAG} {file} failed: {failure(error)}") from error
