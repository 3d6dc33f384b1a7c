"""Predictions written as DICOM segmentations that refer to the slices they were made of, by highdicom, an extra."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from med3d_nets import __version__
from med3d_nets.dicom import MANUFACTURER
from med3d_nets.dicom_planes import GROUPS, PACKAGES, find_planes, frame_groups, place_on_grid, stack_planes
from med3d_nets.errors import Med3dError

__all__ = ["write_segmentation"]

Array = NDArray[np.float64]

MAX_SEGMENTS = 2**16 - 1

# highdicom tells the name of every patient who has one of a single word, as anonymising gives.
warnings.filterwarnings("ignore", "The string .* is unlikely to represent the intended person name")
logging.getLogger("highdicom").setLevel(logging.WARNING)  # and each step of its writing

_MAY_LACK = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber"),
)
"""What a file must have, empty or not (type 2), and what anonymising takes out or writes over."""
_CATEGORIES = (
    *("Tissue", "AnatomicalStructure", "PhysicalObject", "MorphologicallyAbnormalStructure", "Function"),
    *("SpatialAndRelationalConcept", "BodySubstance", "Substance"),
)
"""Of segments (DICOM PS3.16, CID 7150), in the order of the lists of their types, CID 7191 to 7198."""
_TEXT = 64
"""Characters of a text (VR LO)."""
_SERIES = 1000
"""Added to the number of the slices' series."""
_LARGEST = 2**31 - 1
"""Number that a series can have (VR IS)."""


def write_segmentation(
    path: str | BinaryIO,
    labels: NDArray[Any],
    affine: Array,
    files: Sequence[str],
    class_names: Sequence[str],
    algorithm: str,
    version: str,
    series_description: str = "Segmentation",
) -> None:
    """Write a prediction as a binary segmentation that refers to the slices it was made of.

    Each class above the background is a segment, also one without a voxel. Frames without one are left out, but a
    wholly empty label map keeps those of one slice. The UIDs come of the slices, the labels and the algorithm, so that
    the same prediction is the same object. What the slices lack is left empty; where they have no frame of reference,
    it is named after their series. Texts are cut after 64 characters.

    Args:
        path: where to, or an open file.
        labels: class numbers on the grid of the slices, ``(x, y, z)``.
        affine: from voxels to RAS+ in mm, ``(4, 4)``.
        files: of the slices, in any order, or the one of all frames.
        class_names: background first. Names that are in DICOM's lists of segments, such as ``liver``, are coded as
            these, others as tissue.
        algorithm, version: of what predicted.
        series_description: of the new series.

    Raises:
        Med3dError: if the packages are missing; if the slices are no series that makes a grid, or lack what a
            segmentation refers to; if labels are not on this grid, or no class numbers.
        OSError: if it cannot be written.
    """
    first, classes = files[0], len(class_names)
    if not 1 < classes <= MAX_SEGMENTS + 1:
        raise Med3dError(f"{first}: found {classes} classes to write; expected 2 to {MAX_SEGMENTS + 1} with background")
    if not 0 <= labels.min() <= labels.max() < classes:
        found = f"labels from {labels.min()} to {labels.max()}"
        raise Med3dError(f"{first}: found {found} to write; expected class numbers from 0 to {classes - 1}")
    try:
        import pydicom

        headers = [_read_header(pydicom, file) for file in files]
        frames = _place(files, headers, labels.astype(np.min_scalar_type(classes - 1), copy=False), affine)
        made = _make(headers, frames, list(class_names), algorithm, version, series_description)
    except Med3dError:
        raise
    except ImportError as error:
        raise Med3dError(f"{first}: found no writer of segmentations; expected {PACKAGES} ({error})") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        found = f"files that no segmentation can refer to ({_reason(error)})"
        raise Med3dError(f"{first}: found {found}; expected the slices of a series, with their attributes") from error
    made.save_as(path, enforce_file_format=True)


def _read_header(pydicom: Any, path: str) -> Any:
    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:  # whatever a damaged file makes pydicom raise
        raise Med3dError(f"{path}: found an unreadable file ({_reason(error)}); expected a DICOM slice") from error


def _place(files: Sequence[str], headers: Sequence[Any], labels: NDArray[Any], affine: Array) -> NDArray[Any]:
    """Labels ``(slice, row, column)`` in the order of slices; their headers get what highdicom asks for."""
    first = headers[0]
    several = _has_frames(first)
    if several and len(files) > 1:
        raise Med3dError(f"{files[0]}: found {len(files)} files with frames; expected one, or a file for each slice")
    for file, header in zip(files, headers, strict=True):
        for name in ("SeriesInstanceUID", "Rows", "Columns"):
            found, expected = (getattr(each, name) for each in (header, first))
            if found != expected:
                raise Med3dError(f"{file}: found {name} {found}; expected {expected}, that of {files[0]}")
    groups = [frame_groups(files[0], first, name) for name in GROUPS] if several else [headers] * 3
    index, grid = stack_planes(files[0], find_planes(files[0], *groups), whole=True)
    shape = (int(first.Columns), int(first.Rows), len(index))
    if labels.shape != shape:
        raise Med3dError(
            f"{files[0]}: found {labels.shape} labels to write; expected {shape}, as its series has voxels"
        )
    _complete(headers, groups if several else None, float(np.linalg.norm(grid[:3, 2])))
    return np.ascontiguousarray(place_on_grid(files[0], labels, affine, shape, grid).T[index])


def _has_frames(header: Any) -> bool:
    """Whether a file is of the enhanced kind, in which each frame has its place."""
    return "PerFrameFunctionalGroupsSequence" in header or int(header.get("NumberOfFrames") or 1) > 1


def _complete(headers: Sequence[Any], groups: Sequence[Sequence[Any]] | None, distance: float) -> None:
    """Give headers what highdicom asks for: texts that it takes, a frame of reference, one direction and distance.

    Args:
        headers: of the slices, or of the file with all frames; changed.
        groups: items of ``GROUPS`` of that file's frames.
        distance: between slices in mm.
    """
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid
    from pydicom.valuerep import DSfloat

    first = headers[0]
    _empty_invalid(first)
    own = generate_uid(entropy_srcs=["frame of reference", first.SeriesInstanceUID])
    for header in headers:
        header.FrameOfReferenceUID = first.get("FrameOfReferenceUID") or own
    if groups is None:
        measures = first
        for header in headers:
            header.ImageOrientationPatient = first.ImageOrientationPatient
    else:
        positions, orientations, (measures, *_) = groups
        shared = Dataset()
        shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = orientations[:1], [measures]
        first.SharedFunctionalGroupsSequence = [shared]
        for frame, position in zip(first.PerFrameFunctionalGroupsSequence, positions, strict=True):
            frame.PlanePositionSequence = [position]
    measures.SpacingBetweenSlices = DSfloat(distance, auto_format=True)
    measures.SliceThickness = measures.get("SliceThickness") or measures.SpacingBetweenSlices


def _empty_invalid(header: Any) -> None:
    """Take out what pydicom cannot convert, and empty what a segmentation must have and highdicom would refuse."""
    from pydicom.config import RAISE
    from pydicom.datadict import dictionary_VR
    from pydicom.valuerep import validate_value

    for tag in list(header.keys()):
        try:
            header[tag]
        except Exception:  # of any kind, by the type that the value should be of
            del header[tag]
    header.decode()  # other texts than the slices' are in UTF-8
    for name in _MAY_LACK:
        value = str(header.get(name) or "")
        try:
            validate_value(dictionary_VR(name), value, RAISE)
        except ValueError:
            value = ""
        if not value or (name == "PatientSex" and value not in ("F", "M", "O")):
            setattr(header, name, "")


def _make(
    headers: Sequence[Any],
    frames: NDArray[Any],
    class_names: Sequence[str],
    algorithm: str,
    version: str,
    series_description: str,
) -> Any:
    """highdicom's segmentation of ``(slice, row, column)``, with UIDs that come of its content."""
    import highdicom
    from pydicom.uid import generate_uid

    digest = hashlib.sha256(frames.tobytes()).hexdigest()
    content = "\n".join([*(each.SOPInstanceUID for each in headers), digest, *class_names, algorithm, version])
    series, instance, dimensions = (
        generate_uid(entropy_srcs=[kind, content]) for kind in ("series", "instance", "dimensions")
    )
    positions = None
    empty = not frames.any()
    if empty:  # highdicom would write all frames of all segments
        first = frame_groups("", headers[0], GROUPS[0])[0] if _has_frames(headers[0]) else headers[0]
        frames, positions = frames[:1], [highdicom.PlanePositionSequence("PATIENT", first.ImagePositionPatient)]
    made = highdicom.seg.Segmentation(
        source_images=headers,
        pixel_array=frames,
        plane_positions=positions,
        omit_empty_frames=not empty,
        segmentation_type="BINARY",
        segment_descriptions=_describe(class_names, algorithm, version),
        series_instance_uid=series,
        series_number=min(max(int(headers[0].get("SeriesNumber") or 0), 0) + _SERIES, _LARGEST),
        sop_instance_uid=instance,
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=_text(algorithm),
        software_versions=__version__,
        device_serial_number="0",
        content_label="PREDICTION",
        content_description=_text(series_description),
        series_description=_text(series_description),
        specific_character_set="ISO_IR 192",
    )
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    return made


def _describe(class_names: Sequence[str], algorithm: str, version: str) -> list[Any]:
    """A segment for each class above the background."""
    import highdicom
    from highdicom.color import CIELabColor
    from pydicom.sr.codedict import codes

    from med3d_nets.quicklook import colour_of  # its plots load slowly

    identification = highdicom.AlgorithmIdentificationSequence(
        name=_text(algorithm), family=codes.DCM.ArtificialIntelligence, version=_text(version)
    )
    found = []
    for number, name in enumerate(class_names[1:], 1):
        category, kind = _codes(name)
        colour = colour_of(number)
        found.append(
            highdicom.seg.SegmentDescription(
                segment_number=number,
                segment_label=_text(name) or f"class {number}",
                segmented_property_category=category,
                segmented_property_type=kind,
                algorithm_type="AUTOMATIC",
                algorithm_identification=identification,
                display_color=(
                    CIELabColor.from_string(colour)
                    if isinstance(colour, str)
                    else CIELabColor.from_rgb(*(255 * part for part in colour))
                ),
            )
        )
    return found


def _codes(name: str) -> tuple[Any, Any]:
    """Codes of a segment's category and type: those of a type with this very name, or else those of tissue."""
    from pydicom.sr.codedict import codes

    wanted = " ".join(name.casefold().replace("_", " ").split())
    found = [
        (getattr(codes.CID7150, category), code)
        for number, category in enumerate(_CATEGORIES, 7191)
        for code in getattr(codes, f"CID{number}").concepts.values()
        if code.meaning.casefold() == wanted
    ]
    tissue = codes.CID7150.Tissue
    return found[0] if len({code.value for _, code in found}) == 1 else (tissue, tissue)


def _text(value: str) -> str:
    """As a DICOM text: a backslash would begin another."""
    return " ".join(value.replace("\\", "/").split())[:_TEXT].strip()


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
