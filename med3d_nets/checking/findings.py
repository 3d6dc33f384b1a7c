"""What can be found in a data set: the kinds, how grave each is, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from med3d_nets.volume_files import MAX_SPACING, MAX_VOXELS

__all__ = ["ERROR", "KINDS", "WARNING", "Finding", "Kind", "by_kind", "count"]

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        severity: :data:`ERROR`, which stops training too, or :data:`WARNING`.
        title: for people.
        advice: what to do.
    """

    severity: str
    title: str
    advice: str


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or odd, in one case.

    Attributes:
        kind: key of :data:`KINDS`.
        part: ``"training"``, ``"validation"``, ``"test"`` or ``"unlabelled"``; "" where it is the list's.
        case: short name of the case, "" where it is the list's.
        file: the file that it is about.
        found, expected: in words.
    """

    kind: str
    part: str
    case: str
    file: str
    found: str
    expected: str

    @property
    def severity(self) -> str:
        """That of its kind."""
        return KINDS[self.kind].severity


_GRID = "Resample the label onto its image's grid (nearest neighbour), or find the label that belongs to the image."
_LOOK = "Look at the case; nothing needs to be done where it is as it should be."

KINDS = {
    "list": Kind(ERROR, "lines of the list", "Mend the list."),
    "missing": Kind(ERROR, "missing files", "Correct the path in the list, or data_root, or copy the file anew."),
    "unreadable": Kind(ERROR, "unreadable or truncated files", "Copy or convert the file anew from its source."),
    "size": Kind(
        ERROR, f"more than {MAX_VOXELS} voxels in a file", "Convert the file anew; crop it if it is so large."
    ),
    "type": Kind(ERROR, "files that are no volumes of numbers", "Convert the file to NIfTI with one number a voxel."),
    "dimensions": Kind(ERROR, "wrong dimensions", "Split time series; give --in_channels for images with channels."),
    "spacing": Kind(
        ERROR,
        "impossible spacing",
        f"Convert the file anew from its source, with a spacing above 0 and at most {MAX_SPACING:g} mm.",
    ),
    "not_finite": Kind(ERROR, "NaN or infinite values", "Replace them, by the value of air for example."),
    "constant": Kind(ERROR, "images of one value", "Export the image anew, or leave the case out."),
    "grid": Kind(ERROR, "image and label on different grids", _GRID),
    "label_values": Kind(
        ERROR, "label values outside the classes", "Give the right --n_seg_classes, or number the label's values anew."
    ),
    "empty_mask": Kind(ERROR, "empty masks", "Draw the region of interest, or leave the mask out."),
    "repeated": Kind(ERROR, "cases that are listed twice", "Delete one of the lines."),
    "shared": Kind(ERROR, "images in training and in validation", "Take the image out of one of the lists."),
    "patients": Kind(ERROR, "patients in training and in validation", "Keep all cases of a patient in one list."),
    "unlabelled": Kind(
        WARNING,
        "no label maps",
        "A prediction needs none; a training needs one for each image.",
    ),
    "empty_label": Kind(
        WARNING, "labels without foreground", "Is the class not there, or is the label not drawn? Leave out the latter."
    ),
    "absent_class": Kind(WARNING, "classes that no label has", "Is --n_seg_classes right?"),
    "duplicate": Kind(
        WARNING,
        "the same image under two names",
        "Keep one of them, above all where one is for training and the other for validation.",
    ),
    "mirrored": Kind(
        WARNING,
        "left and right possibly swapped",
        "Compare with the scan's source which side things are on. If they are swapped, flip the voxels or the affine.",
    ),
    "orientation": Kind(
        WARNING,
        "mixed orientations",
        "The patch recipe turns volumes to one orientation. MedicalNet's own (whole) takes them as they are stored: "
        "for it, turn the files with nibabel.as_closest_canonical.",
    ),
    "outlier_size": Kind(WARNING, "outliers in size", _LOOK),
    "outlier_spacing": Kind(WARNING, "outliers in spacing", _LOOK),
    "outlier_intensity": Kind(
        WARNING, "outliers in intensity", "Look at the case: another modality, unit or window, or metal in the image?"
    ),
    "outlier_label": Kind(WARNING, "outliers in the volume of a class", _LOOK),
}
"""By name, in the order of reports."""


def by_kind(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """Findings of each kind that there are any of, errors first."""
    found = {kind: [finding for finding in findings if finding.kind == kind] for kind in KINDS}
    return {kind: each for kind, each in found.items() if each}


def count(findings: Sequence[Finding], severity: str) -> int:
    """Number of findings of a severity."""
    return sum(finding.severity == severity for finding in findings)
