"""The folder of an inference's answers: names, and which cases are finished, by what, of which image.

Each label map has a record in ``cases/`` that says what it was made of and with, by digests. A case is finished if all
agree; what does not agree is told, never mixed or written over in silence. A record appears before its label map and
the label map last, so that one without the other tells of a run that was ended in between.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from monai.data.utils import create_file_basename

from med3d_nets.datalist import output_names
from med3d_nets.dicom import is_dicom
from med3d_nets.errors import Med3dError
from med3d_nets.formats import images_of, parts_of
from med3d_nets.settings import Settings, versions
from med3d_nets.weights import file_sha256
from med3d_nets.writing import whole_files

__all__ = ["Place", "PredictionStore"]

RECORD = "predictions.json"
FORMAT = 1
ADVICE = "give another --output_dir or pass --overwrite True"

Writer = Callable[[str], None]


class Place(NamedTuple):
    """Absolute paths of a case's answers."""

    case: str
    """Name of the case: the image's path below the common folder, without its suffix."""
    label_map: str
    probabilities: str
    segmentation: str
    """The label map as a DICOM object; "" for what is not wanted so."""
    picture: str
    record: str


class PredictionStore:
    """What is known of the answers in a folder.

    Args:
        cases: items with an ``image``, a path or those of the channels.
        output_dir: the folder.
        root: folder below which the images' relative paths are kept.
        model_files: weights that predict; those that are not there have no digest.
        settings: those of the network.
        options: of this run, by name, that change what is predicted.
        postfix: what is appended to the images' names.
        dicom_seg: whether images of DICOM get a DICOM segmentation too.

    Attributes:
        cases: paths of each case's channels by the first of them, which stands for the case below.

    Raises:
        Med3dError: if two label maps, or a label map and something else, would have one name.
    """

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]],
        output_dir: str,
        root: str,
        model_files: Sequence[str],
        settings: Settings,
        options: Mapping[str, Any],
        postfix: str = "seg",
        dicom_seg: bool = True,
    ) -> None:
        self.cases = {images_of(case)[0]: images_of(case) for case in cases}
        self.output_dir = os.path.abspath(output_dir)
        self.root = root
        self.model_files = list(model_files)
        self.settings = settings
        self.options = dict(options)
        self.postfix = postfix
        self.dicom_seg = dicom_seg
        if postfix == "prob":
            raise Med3dError("output_postfix is 'prob', which probabilities have; expected another one")
        output_names(cases, root)
        self._places: dict[str, Place] = {}

    @cached_property
    def made_with(self) -> dict[str, Any]:
        """What label maps of one folder must have in common: digests of the networks, their settings, options."""
        settings = {name: value for name, value in asdict(self.settings).items() if name != "pretrained"}
        digests = [file_sha256(path) if os.path.exists(path) else None for path in self.model_files]
        # As they will be read: a tuple becomes a list.
        return json.loads(json.dumps({"networks": digests, "settings": settings, "options": self.options}))

    def place(self, image: str) -> Place:
        """Where the answers to an image go."""
        if image not in self._places:
            self._places[image] = self._name(image)
        return self._places[image]

    def _name(self, image: str) -> Place:
        (named,) = output_names([{"image": image}], self.root)
        base, plain = (
            create_file_basename(
                each, named["image"], self.output_dir, self.root, separate_folder=False, makedirs=False
            )
            for each in (self.postfix, "")
        )
        case, own = (os.path.relpath(path, self.output_dir) for path in (plain, base))
        picture, record = os.path.join("quicklook", f"{case}.png"), os.path.join("cases", f"{own}.json")
        segmentation = f"{base}.dcm" if self.dicom_seg and is_dicom(image) else ""
        paths = (f"{base}.nii.gz", f"{plain}_prob.nii.gz", segmentation)
        return Place(Path(case).as_posix(), *paths, *map(self._absolute, (picture, record)))

    def without_answers(self) -> list[str]:
        """The images but for those that are answers to others, where answers go to the images' own folder.

        Raises:
            Med3dError: if an answer would replace its own image.
        """
        written: set[str] = set()
        for image, files in self.cases.items():
            place = self.place(image)
            answers = {place.label_map, place.probabilities}
            if answers & set(files):
                raise Med3dError(f"{image}: its label map would replace it; give another --output_dir")
            written |= answers
        return [image for image in self.cases if image not in written]

    def check_record(self) -> None:
        """Compare this run with what made the label maps that are there.

        Raises:
            Med3dError: naming both values of all that differs.
        """
        path = self._absolute(RECORD)
        if not os.path.exists(path):
            return
        found = _read(path)
        if found is None:
            raise Med3dError(f"{path}: found no record of an inference; {ADVICE}")
        if wrong := _differences(found["made_with"], self.made_with):
            raise Med3dError(f"{path}: the label maps in this folder were made with {'; '.join(wrong)}; {ADVICE}")

    def examine(self, image: str, probabilities: bool) -> tuple[bool, str]:
        """Whether an image's case is finished, and what is wrong with what is there, or "".

        Args:
            image: absolute path.
            probabilities: whether they are wanted too.
        """
        place = self.place(image)
        wanted = [place.label_map, *filter(None, [place.probabilities if probabilities else "", place.segmentation])]
        record = _read(place.record)
        wanted = [path for path in wanted if self._relative(path) not in (record or {}).get("left_out", [])]
        there = [path for path in wanted if os.path.exists(path)]
        if not there:
            return False, ""
        if record is None:
            return False, f"{there[0]}: exists already, and no record in {self.output_dir} tells of it"
        if changed := [path for path in there if record["files"].get(self._relative(path)) != _digest(path)]:
            return False, f"{changed[0]}: exists already, and is not what was predicted: it was changed since"
        if place.label_map in there and record["made_with"] != self.made_with:
            wrong = "; ".join(_differences(record["made_with"], self.made_with))
            return False, f"{place.label_map}: exists already, and was made with {wrong}"
        if place.label_map in there and not _is_same(record, self.cases[image]):
            return False, f"{place.label_map}: exists already, and was made of {record['image']}, not as {image} is now"
        return there == wanted, ""

    def write(
        self,
        image: str,
        label_map: Writer,
        structures: Sequence[Mapping[str, Any]],
        probabilities: Writer | None = None,
        segmentation: Writer | None = None,
        picture: Writer | None = None,
    ) -> None:
        """Write the answers to an image, whole and together, in place of earlier ones.

        Args:
            image: absolute path.
            label_map, probabilities, segmentation, picture: each writes a file under the name that it is given. A
                segmentation that is wanted and not there is recorded as left out.
            structures: for the tables.

        Raises:
            OutputError: if they cannot be written.
        """
        place = self.place(image)
        files = self.cases.get(image, [image])  # a program may predict what is not in its list
        self._write_record()
        writers = {
            place.picture: picture,
            place.probabilities: probabilities,
            place.segmentation: segmentation,
            place.label_map: label_map,
        }
        wanted = {path: writer for path, writer in writers.items() if writer}
        # With the picture and the probabilities of an earlier label map, where this run does not make them.
        outdated = map(self._absolute, (_read(place.record) or {}).get("files", {}))
        with whole_files(place.record, *wanted, outdated=outdated) as (record, *temporaries):
            for temporary, writer in zip(temporaries, wanted.values(), strict=True):
                writer(temporary)
            digests = [_digest(path) for path in temporaries]
            content = {
                "format": FORMAT,
                "case": place.case,
                "image": image,
                "image_files": {**_look(files), "sha256": _digest(*files)},
                "label_map": self._relative(place.label_map),
                "files": dict(zip(map(self._relative, wanted), digests, strict=True)),
                "left_out": [self._relative(place.segmentation)] if place.segmentation and not segmentation else [],
                "structures": list(structures),
                "made_with": self.made_with,
                "versions": versions(),
            }
            Path(record).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def read_finished(self) -> tuple[list[dict[str, Any]], int]:
        """Records of all label maps that were made as this run makes them, by case, and the number of others."""
        records = [record for path in sorted(Path(self.output_dir, "cases").rglob("*.json")) if (record := _read(path))]
        there = [record for record in records if os.path.exists(self._absolute(record["label_map"]))]
        agreeing = [record for record in there if self._agrees(record)]
        return sorted(agreeing, key=lambda record: record["label_map"]), len(there) - len(agreeing)

    def _agrees(self, record: Mapping[str, Any]) -> bool:
        name = record["label_map"]
        return record["made_with"] == self.made_with and record["files"].get(name) == _digest(self._absolute(name))

    def _write_record(self) -> None:
        """Write ``predictions.json``, unless it says the same already."""
        path = self._absolute(RECORD)
        if ((_read(path) or {}).get("made_with")) != self.made_with:
            content = {"format": FORMAT, "model_files": self.model_files, "made_with": self.made_with}
            with whole_files(path) as (temporary,):
                text = json.dumps({**content, "versions": versions()}, indent=2) + "\n"
                Path(temporary).write_text(text, encoding="utf-8")

    def _absolute(self, name: str) -> str:
        return os.path.join(self.output_dir, name)

    def _relative(self, path: str) -> str:
        return Path(os.path.relpath(path, self.output_dir)).as_posix()


def _read(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """A record, None where there is none that can be read."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(content, dict) and content.get("format") == FORMAT and "made_with" in content
    return content if known else None


def _digest(*paths: str) -> str:
    """SHA-256 of a file, or of the digests of several, such as those of a series."""
    digests = [file_sha256(path) for each in paths for path in parts_of(each)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _look(paths: Sequence[str]) -> dict[str, int]:
    """What tells of a change without reading."""
    states = [os.stat(part) for path in paths for part in parts_of(path)]
    return {"bytes": sum(each.st_size for each in states), "modified": max(each.st_mtime_ns for each in states)}


def _is_same(record: Mapping[str, Any], paths: Sequence[str]) -> bool:
    """Whether a record is of an image: of the same files, or of such with the same content elsewhere."""
    known = record["image_files"]
    try:
        found = _look(paths)
        if record["image"] == paths[0] and all(known[name] == value for name, value in found.items()):
            return True
        return bool(known["bytes"] == found["bytes"] and known["sha256"] == _digest(*paths))
    except OSError:
        return False


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Both values of what differs, a text each."""
    pairs = [("SHA-256 of the weights", found["networks"], wanted["networks"])]
    for part in ("settings", "options"):
        names = dict.fromkeys([*found[part], *wanted[part]])
        pairs += [(name, found[part].get(name), wanted[part].get(name)) for name in names]
    return [f"{name} {old!r}, this run has {new!r}" for name, old, new in pairs if old != new]
