"""Volumes in other formats than NIfTI, written from their definitions and not by what reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

METAIMAGE = {"i1": "CHAR", "u1": "UCHAR", "i2": "SHORT", "i4": "INT", "i8": "LONG_LONG", "f4": "FLOAT", "f8": "DOUBLE"}
NRRD = {"i1": "int8", "u1": "uint8", "i2": "int16", "i4": "int32", "i8": "int64", "f4": "float", "f8": "double"}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def _numbers(values: Any) -> str:
    return " ".join(f"{value:.10g}" for value in np.ravel(values))


def write_metaimage(path: Path, voxels: Array, affine: Array) -> Path:
    """``(x, y, z)`` or ``(x, y, z, channel)`` and an affine in RAS+ mm, as ``.mha`` or, with a ``.raw``, ``.mhd``."""
    channels = voxels.shape[3] if voxels.ndim == 4 else 1
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    local = path.suffix == ".mha"
    header = f"""ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
TransformMatrix = {_numbers((lps[:3, :3] / spacing).T)}
Offset = {_numbers(lps[:3, 3])}
ElementSpacing = {_numbers(spacing)}
DimSize = {_numbers(voxels.shape[:3])}
ElementNumberOfChannels = {channels}
ElementType = MET_{METAIMAGE[voxels.dtype.str[1:]]}
ElementDataFile = {"LOCAL" if local else path.with_suffix(".raw").name}
""".encode()
    content = np.moveaxis(voxels, -1, 0).tobytes("F") if channels > 1 else voxels.tobytes("F")
    path.write_bytes(header + content if local else header)
    if not local:
        path.with_suffix(".raw").write_bytes(content)
    return path


def write_nrrd(path: Path, voxels: Array, affine: Array, space: str = "left-posterior-superior") -> Path:
    """As :func:`write_metaimage`, in one of NRRD's spaces of the patient."""
    signs = [-1 if side in space else 1 for side in ("left", "posterior")]
    turned = np.diag([*signs, 1.0, 1.0]) @ affine
    columns = " ".join(f"({','.join(f'{value:.10g}' for value in turned[:3, axis])})" for axis in range(3))
    header = f"""NRRD0004
type: {NRRD[voxels.dtype.str[1:]]}
dimension: 3
space: {space}
sizes: {_numbers(voxels.shape)}
space directions: {columns}
kinds: domain domain domain
endian: little
encoding: raw
space origin: ({",".join(f"{value:.10g}" for value in turned[:3, 3])})

""".encode()
    path.write_bytes(header + voxels.tobytes("F"))
    return path


def write_series(
    folder: Path,
    voxels: Array,
    affine: Array,
    uid: str = "1.2.3",
    name: Callable[[int], str] = "IM{:03}".format,
    change: Callable[[int, Any], None] = lambda index, header: None,
) -> Path:
    """Whole numbers ``(x, y, z)`` and an affine in RAS+ mm, as the files of a CT's slices.

    Args:
        folder: made if need be.
        voxels: HU.
        affine: whose third axis is the normal of the other two.
        uid: of the series.
        name: of a slice's file, by its index.
        change: called with the index and the header of each slice before it is written.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    turn = lps[:3, :3] / spacing
    for index in range(voxels.shape[2]):
        header = Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = CTImageStorage
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{index + 1}"
        header.StudyInstanceUID, header.SeriesInstanceUID, header.PatientName = f"{uid}.0", uid, "Somebody"
        header.Modality, header.SeriesNumber, header.SeriesDescription = "CT", 3, "chest"
        header.InstanceNumber = index + 1
        header.ImageOrientationPatient = [f"{value:.10f}" for value in (*turn[:, 0], *turn[:, 1])]
        header.ImagePositionPatient = [f"{value:.8f}" for value in (lps @ [0, 0, index, 1])[:3]]
        header.PixelSpacing, header.SliceThickness = [f"{spacing[1]:.8f}", f"{spacing[0]:.8f}"], "1"
        header.Columns, header.Rows = voxels.shape[:2]
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
        header.RescaleSlope, header.RescaleIntercept = "1", "-1024"
        header.PixelData = (voxels[:, :, index].T + 1024).astype("<u2").tobytes()
        change(index, header)
        header.save_as(folder / name(index), enforce_file_format=True)
    return folder


def write_enhanced(
    path: Path,
    voxels: Array,
    affine: Array,
    order: Sequence[int],
    slopes: Sequence[float] = (),
    change: Callable[[int, Any], None] = lambda index, header: None,
) -> Path:
    """As :func:`write_series`, with all slices as the frames of one enhanced CT.

    Args:
        path, voxels, affine: as there.
        order: slice of each frame.
        slopes: rescale slope of each slice, which divides what is stored; () for 1.
        change: called with 0 and the header before it is written.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian

    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    turn = lps[:3, :3] / spacing

    def item(**values: Any) -> Dataset:
        made = Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    frames = []
    for index in order:
        place = item(ImagePositionPatient=[f"{value:.8f}" for value in (lps @ [0, 0, index, 1])[:3]])
        slope = slopes[index] if slopes else 1
        scale = item(RescaleSlope=f"{slope:g}", RescaleIntercept="-1024", RescaleType="HU")
        content = item(DimensionIndexValues=[1, index + 1], StackID="1", InStackPositionNumber=index + 1)
        frames.append(
            item(
                PlanePositionSequence=[place], PixelValueTransformationSequence=[scale], FrameContentSequence=[content]
            )
        )
    measures = item(PixelSpacing=[f"{spacing[1]:.8f}", f"{spacing[0]:.8f}"], SliceThickness=f"{spacing[2]:.8f}")
    direction = item(ImageOrientationPatient=[f"{value:.10f}" for value in (*turn[:, 0], *turn[:, 1])])
    stored = [(voxels[:, :, index].T + 1024) / (slopes[index] if slopes else 1) for index in order]
    header = item(
        SOPClassUID=EnhancedCTImageStorage,
        SOPInstanceUID=f"1.2.9.{int.from_bytes(path.name.encode()[:8])}",
        StudyInstanceUID="1.2",
        SeriesInstanceUID="1.2.9",
        FrameOfReferenceUID="1.2.3.4",
        PatientName="Somebody",
        Modality="CT",
        SeriesNumber=3,
        InstanceNumber=1,
        ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        NumberOfFrames=str(len(order)),
        SharedFunctionalGroupsSequence=[item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[direction])],
        PerFrameFunctionalGroupsSequence=frames,
        Columns=voxels.shape[0],
        Rows=voxels.shape[1],
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        BitsAllocated=16,
        BitsStored=16,
        HighBit=15,
        PixelRepresentation=0,
        PixelData=np.stack(stored).round().astype("<u2").tobytes(),
    )
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    change(0, header)
    header.save_as(path, enforce_file_format=True)
    return path
