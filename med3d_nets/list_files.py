"""What all lists of cases share: how files are found, how text lists are read, and how problems are told together."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from typing import TypeAlias

from med3d_nets.checks import reason
from med3d_nets.dicom import is_series, series_in
from med3d_nets.errors import Med3dError
from med3d_nets.formats import SUFFIXES as IMAGE_SUFFIXES

__all__ = [
    "IMAGE_SUFFIXES",
    "find_path",
    "no_folder",
    "raise_for",
    "read_csv",
    "read_csv_lines",
    "read_rows",
    "read_text",
    "short_names",
    "volumes_in",
]

Path: TypeAlias = str | os.PathLike[str]

MAX_LINES = 50
"""Problems that one message names."""

_FIELD = re.compile(r"""(?:"([^"]*)"|'([^']*)')(?=[ \t]|$)|([^ \t]+)""")


def find_path(option: str, path: Path, data_root: Path, problems: list[str]) -> str | None:
    """Absolute path of a list, file or folder: below ``data_root`` where it is there, else the working directory.

    Args:
        option: name of the option that gave the path, for messages.
        path: as it was given.
        data_root: "": the working directory.
        problems: one is added if nothing is there; None is returned then.
    """
    if not os.fspath(path):
        problems.append(f"{option}: found an empty path; expected that of a file")
        return None
    tried = dict.fromkeys(os.path.abspath(os.path.join(folder, path)) for folder in (data_root, ""))
    for place in tried:
        if os.path.exists(place):
            return place
    problems.append(f"{option} {os.fspath(path)}: found no such file; expected it at {' or at '.join(tried)}")
    return None


def volumes_in(folder: str) -> list[str]:
    """Paths of the volumes directly in a folder, sorted: files, and DICOM series directly in folders in it.

    See :func:`~med3d_nets.dicom.series_in` for folders with several.
    """
    # Hidden files include the "._" ones that macOS leaves on other file systems.
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    volumes = []
    for path in paths:
        if os.path.isdir(path):
            volumes += series_in(path) if is_series(path) else []
        elif path.lower().endswith(IMAGE_SUFFIXES):
            volumes.append(path)
    return volumes


def short_names(files: Sequence[str]) -> list[str]:
    """Names of files without what all their folders have in common, so that they stay apart."""
    names = [os.path.basename(file) for file in files]
    if len(set(names)) == len(names):
        return names
    try:
        folder = os.path.commonpath([os.path.dirname(file) for file in files])
    except ValueError:  # some are absolute and some are not
        return list(files)
    return [os.path.relpath(file, folder) if folder else file for file in files]


def no_folder(root: str, paths: Sequence[str], problems: list[str]) -> bool:
    """Whether a list has relative paths and there is no folder for them: one problem, not one for each path.

    Args:
        root: absolute path of ``data_root``.
        paths: as they stand in the list.
        problems: one is added.
    """
    if os.path.isdir(root) or all(os.path.isabs(path) for path in paths):
        return False
    problems.append(f"data_root {root}: found no such folder; expected the one that the list's paths are in")
    return True


def read_rows(
    path: str, forms: Sequence[Sequence[str]], problems: list[str], others: str
) -> list[tuple[int, list[str]]]:
    """Number and fields of each line of a text list that has any.

    Fields are split at spaces and tabs; one with spaces stands in single or double quotes. Backslashes are ordinary
    characters. Blank lines and comments (``#`` at the start of a line or after a space) are skipped.

    Args:
        path: UTF-8 text, with or without a byte order mark, with line ends of any system.
        forms: names of the fields that a line may have, such as ``[["image"], ["image", "label"]]``.
        problems: one is added for a file that cannot be read, and for each line of another form.
        others: the other kinds of files that the option takes, for the message.
    """
    text = read_text(path, problems, f"a list in UTF-8, {others}")
    rows = []
    expected = " or ".join(f"'{' '.join(form)}'" for form in forms)
    for number, line in enumerate(text.split("\n"), 1):
        row = _split(line)
        if row is None:
            found, hint = f"a quote that does not end a field ({line.strip()})", ", with quotes around whole paths"
        elif row and len(row) not in map(len, forms):
            found = f"{len(row)} field{'s' * (len(row) > 1)} ({line.strip()})"
            hint = "; put paths that have spaces in quotes" if len(row) > 2 else ""
        else:
            rows += [(number, row)] if row else []
            continue
        problems.append(f"{path}, line {number}: found {found}; expected {expected}{hint}")
    return rows


def read_csv_lines(path: str, problems: list[str]) -> list[tuple[int, list[str]]]:
    """Number and values of each line of a table that has any, the header first; [] and a problem where it cannot be.

    Args:
        path, problems: as for :func:`read_csv`; lines may differ in length.
    """
    before = len(problems)
    reader = csv.reader(io.StringIO(read_text(path, problems, "a table in UTF-8")), strict=True)
    lines = []
    try:
        for line in reader:
            if any(field.strip() for field in line):
                lines.append((reader.line_num, [field.strip() for field in line]))
    except csv.Error as error:
        problems.append(f"{path}, line {reader.line_num}: found {error}; expected values separated by commas")
        return []
    if not lines and len(problems) == before:
        problems.append(f"{path}: found nothing in it; expected a header such as 'image,label' and a case a line")
    return lines


def read_csv(path: str, problems: list[str]) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Columns of a table, in lower case, and the number and values of each line that has any.

    Args:
        path: UTF-8 text with a header, values separated by commas.
        problems: one is added for a file that cannot be read or is empty, and for each line of another length.
    """
    lines = read_csv_lines(path, problems)
    if not lines:
        return [], []
    columns = [name.lower() for name in lines[0][1]]
    rows = []
    for number, line in lines[1:]:
        if len(line) == len(columns):
            rows.append((number, dict(zip(columns, line, strict=True))))
        else:
            found = f"{len(line)} values; expected {len(columns)}, as in the header"
            problems.append(f"{path}, line {number}: found {found}")
    return columns, rows


def read_text(path: str, problems: list[str], expected: str) -> str:
    """What is in a UTF-8 file, with ``\\n`` at the end of lines; "" and a problem where it cannot be read."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: found no text ({reason(error)}); expected {expected}")
        return ""


def raise_for(problems: Sequence[str]) -> None:
    """Raise one error for all problems, if there are any.

    Raises:
        Med3dError: with a problem a line, at most :data:`MAX_LINES`.
    """
    if problems:
        lines = [f"the data list has {len(problems)} problem{'s' * (len(problems) > 1)}:"]
        lines += [f"- {problem}" for problem in problems[:MAX_LINES]]
        lines += [f"... and {len(problems) - MAX_LINES} more"] if len(problems) > MAX_LINES else []
        raise Med3dError("\n".join(lines))


def _split(line: str) -> list[str] | None:
    """Fields of a line, None where a quote is left open. The standard shlex would start one at an apostrophe."""
    row: list[str] = []
    for double, single, bare in _FIELD.findall(line):
        if bare.startswith("#"):
            break
        if bare.startswith(('"', "'")):
            return None
        row.append(double or single or bare)
    return row
