"""A page to look at: slices of images with truth and prediction, in one HTML file that works offline.

Slices are drawn by NiiVue (https://niivue.com), which is put into the page; see :mod:`med3d_nets.viewer_page`. What of
the volumes is in it is decided in :mod:`med3d_nets.viewer_volumes`.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
from collections.abc import Sequence
from typing import Any

from med3d_nets.errors import Med3dError
from med3d_nets.formats import SUFFIXES
from med3d_nets.report_plots import PREDICTION, REFERENCE
from med3d_nets.viewer_cases import ViewCase, find_cases
from med3d_nets.viewer_content import Choices, Content, make_content
from med3d_nets.viewer_page import colours, load_viewer, render_view
from med3d_nets.viewer_volumes import KINDS, read_shown
from med3d_nets.weights import write_atomically

__all__ = ["view", "write_view"]

MODALITIES = ("auto", "ct", "mr")
LEAST_MB = 5
"""For the viewer itself, which takes about 2.5, and a small volume."""
FEW = 4
"""So many cases share the page evenly. Of more, each of the first may take the same share, and the last do not fit."""

_log = logging.getLogger(__name__)


def view(
    run_or_case: str,
    *,
    label: str = "",
    prediction: str = "",
    images: str = "",
    data_root: str = "",
    cases: Sequence[str] = (),
    class_names: Sequence[str] = (),
    postfix: str = "seg",
    channel: int = 0,
    modality: str = "auto",
    window: Sequence[float] = (),
    margin: float = 0,
    limit_mb: float = 50,
    out: str = "",
    overwrite: bool = False,
) -> None:
    """Write a page to look at images, truth and prediction, slice by slice, in a browser and without a network.

    Examples:
        med3d view scan.nii.gz --label truth.nii.gz --prediction predictions/scan_seg.nii.gz
        med3d view predictions --label /data/Task04_Hippocampus/labelsTr
        med3d view eval --prediction predictions --label /data/nodules/masks --margin 20

    Files belong together by name: a.nii.gz is the image of a_seg.nii.gz. Volumes that are too large are averaged over
    blocks of voxels, and the page says so; --margin keeps all voxels around the labels instead. In the page, ? shows
    the keys.

    Args:
        run_or_case: an image; a folder of predictions; an evaluation's folder; a folder, a list or a data set.
        label: the truth, a file for one image or a folder; by default that of the list.
        prediction: likewise; an evaluation keeps none.
        images: of a folder of predictions: the folder of their images, or a list; by default as the inference
            recorded, or else the same folder.
        data_root: folder that a list's paths are relative to; by default the list's own.
        cases: names of the cases to show, such as "['case_1','case_2']"; by default as many as fit.
        class_names: names of the classes, background first.
        postfix: ends the names of predictions, after "_".
        channel: of the images, from 0.
        modality: "ct", "mr" or "auto"; tells how the window is chosen.
        window: values shown as black and as white, such as "[-160,240]"; by default chosen from the data.
        margin: show the box around truth and prediction, and so many mm more, alone; 0: the whole volume.
        limit_mb: what the page may take, MB of 10^6 bytes.
        out: the page; by default view.html in the folder, or beside the file and named after it.
        overwrite: whether to replace it.

    Raises:
        Med3dError: for files or options that do not fit.
    """
    listed, names = find_cases(
        str(run_or_case), label=label, prediction=prediction, images=images, data_root=data_root, postfix=postfix
    )
    write_view(
        out or _beside(str(run_or_case)),
        _choose(listed, _texts(cases)) if cases else listed,
        _texts(class_names) or names,
        title=os.path.basename(os.path.abspath(run_or_case)),
        channel=channel,
        modality=modality,
        window=window,
        margin=margin,
        limit_mb=limit_mb,
        overwrite=overwrite,
    )


def write_view(
    path: str | os.PathLike[str],
    cases: Sequence[ViewCase],
    class_names: Sequence[str] = (),
    *,
    title: str = "Cases",
    channel: int = 0,
    modality: str = "auto",
    window: Sequence[float] = (),
    margin: float = 0,
    limit_mb: float = 50,
    overwrite: bool = False,
) -> int:
    """Write the page, whole or not at all.

    Args:
        path: where to.
        cases: to show, at least one. Where they do not all fit, the last ones are left out, with a word in the log and
            on the page; those whose Dice an evaluation knows come with the lowest first.
        class_names: names of the classes, background first; others are "class 1" and so on.
        title: of the page.
        channel, modality, window, margin, limit_mb, overwrite: see :func:`view`.

    Returns:
        How many cases are in it.

    Raises:
        Med3dError: for options that do not fit, a page that is there already, and with all problems of the files.
    """
    if not cases:
        raise Med3dError("no cases: expected at least one to show")
    _check_options(channel, modality, window, margin, limit_mb)
    if os.path.exists(path) and not overwrite:
        raise Med3dError(f"{path}: exists already; replace it with --overwrite True, or name another file with --out")
    viewer = load_viewer()
    room = limit_mb * 10**6 - len(viewer.script)
    choices = Choices(class_names, modality, window, margin)
    made = _make_all(sorted(cases, key=_mean_dice), choices, channel, room)
    left = len(cases) - len(made)
    note = f"Left out: {left} of {len(cases)} cases; --limit_mb makes room, --cases chooses." if left else ""
    data = {
        "title": title,
        "note": note,
        "classes": _classes(class_names, max(each.n_classes for each in made)),
        "cases": [each.described for each in made],
    }
    heading = f"{title}: {len(made)} cases" if len(made) > 1 else str(made[0].described["name"])
    write_atomically(path, render_view(heading, viewer, data, [each.volumes for each in made]))
    size = os.path.getsize(path) / 1e6
    _log.info("written: %s, %d case%s, %.1f MB%s", path, len(made), "s" * (len(made) > 1), size, note and f". {note}")
    return len(made)


def _make_all(cases: Sequence[ViewCase], choices: Choices, channel: int, room: float) -> list[Content]:
    """The first cases, as many as fit into so many bytes."""
    share = room / min(len(cases), FEW)
    made: list[Content] = []
    problems: list[str] = []
    for case in cases:
        labels = {name: file for name, file in zip(KINDS, (case.truth, case.prediction), strict=True) if file}
        read = read_shown(case.files, labels, channel, problems)
        if read is None or problems:
            continue  # all problems are told at once
        content = make_content(case, read, choices, share)
        room -= content.size
        if room < 0:
            break
        made.append(content)
    if problems:
        raise Med3dError("\n".join(problems))
    return made


def _classes(class_names: Sequence[str], n_classes: int) -> list[dict[str, str]]:
    """Names and colours of the foreground classes; one alone has two, as in the page of an evaluation."""
    names = [*map(str, class_names), *(f"class {value}" for value in range(len(class_names), n_classes))][1:]
    pairs = [(REFERENCE, PREDICTION)] if n_classes == 2 else [(one, one) for one in colours(n_classes - 1)]
    return [
        {"name": name, "truth": truth, "prediction": other} for name, (truth, other) in zip(names, pairs, strict=True)
    ]


def _texts(given: Sequence[str]) -> list[str]:
    """Words of an option that takes several, or one."""
    return [given] if isinstance(given, str) else list(map(str, given))


def _choose(listed: Sequence[ViewCase], names: Sequence[str]) -> list[ViewCase]:
    """Cases by their names, in the order that they are asked for.

    Raises:
        Med3dError: naming all that are not there, with suggestions.
    """
    known = {case.name: case for case in listed}
    problems = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            problems.append(f"--cases: no case '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""))
    if problems:
        raise Med3dError("\n".join(problems))
    return [known[name] for name in names]


def _mean_dice(case: ViewCase) -> float:
    known = [score for score in case.dice.values() if math.isfinite(score)]
    return sum(known) / len(known) if known else math.inf


def _beside(path: str) -> str:
    """Where the page of a folder or a file goes."""
    if os.path.isdir(path):
        return os.path.join(path, "view.html")
    ends = [end for end in (*SUFFIXES, os.path.splitext(path)[1]) if end and path.lower().endswith(end)]
    return f"{path[: -len(max(ends, key=len, default=''))] if ends else path}_view.html"


def _check_options(channel: Any, modality: Any, window: Any, margin: Any, limit_mb: Any) -> None:
    def is_number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

    problems = []
    if not isinstance(channel, int) or isinstance(channel, bool) or channel < 0:
        problems.append(f"--channel is {channel!r}, expected a whole number, 0 or more")
    if modality not in MODALITIES:
        problems.append(f"--modality is {modality!r}, expected {', '.join(MODALITIES)}")
    pair = list(window) if isinstance(window, Sequence) and not isinstance(window, str) else [window]
    if pair and not (len(pair) == 2 and all(map(is_number, pair)) and pair[0] < pair[1]):
        problems.append(f'--window is {window!r}, expected two numbers, the lower one first, such as "[-160,240]"')
    if not is_number(margin) or margin < 0:
        problems.append(f"--margin is {margin!r}, expected a number of mm, 0 or more")
    if not is_number(limit_mb) or limit_mb < LEAST_MB:
        problems.append(f"--limit_mb is {limit_mb!r}, expected a number of at least {LEAST_MB}")
    if problems:
        raise Med3dError("\n".join(problems))
