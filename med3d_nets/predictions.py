"""An inference from its list of images to label maps and tables: what is finished is skipped, what is bad is told.

MONAI's evaluator ends at the first case that fails. Here a case that cannot be read, prepared, predicted or brought
back fails alone; the others go on, and the run ends with one error that names those that failed. An answer that cannot
be written ends the run at once, since the next one could not be written either.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite import distributed as idist
from monai.config import KeysCollection
from monai.data import Dataset, DistributedSampler
from monai.engines import SupervisedEvaluator
from monai.transforms import MapTransform
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist

from med3d_nets import __version__, dicom_seg
from med3d_nets.checks import check_case, check_each, read_volume, reason
from med3d_nets.dicom_series import read_series
from med3d_nets.distributed import each_once, gather, shard
from med3d_nets.errors import Med3dError, explain
from med3d_nets.formats import images_of
from med3d_nets.list_files import MAX_LINES, raise_for
from med3d_nets.prediction_store import ADVICE, PredictionStore
from med3d_nets.quicklook import draw_quicklook, in_millilitres
from med3d_nets.structures import measure_structures, to_csv, to_json
from med3d_nets.writing import OutputError, check_writable, whole_files, write_nifti

__all__ = ["CaseDataset", "Predictions", "SavePredictiond", "deal", "model_files"]

logger = logging.getLogger(__name__)

FAILURE = "failure"
"""Key of a case that could not be loaded."""
SHOWN = 5
"""Structures that the log names of a case."""
PATIENCE = timedelta(days=30)
"""How long a process waits for the others' cases; the default of NCCL is ten minutes."""


def model_files(folders: Sequence[str], exported_path: str = "") -> list[str]:
    """Files of the weights that predict: each folder's ``model.pt``, or the exported network."""
    return [exported_path] if exported_path else [os.path.join(folder, "model.pt") for folder in folders]


class Predictions:
    """The cases of an inference: which are to be predicted, which failed, and the tables at its end.

    Args:
        store: the folder of the answers, and the cases, none of which needs to have been read.
        in_channels: channels of the images.
        probabilities: whether these are wanted besides label maps.
        strict: end at the first case that fails, and before any work where a file is bad.
        overwrite: predict what is finished again, and replace it.
    """

    def __init__(
        self,
        store: PredictionStore,
        in_channels: int = 1,
        probabilities: bool = False,
        strict: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.store = store
        self.images: list[str] = []
        self.in_channels = in_channels
        self.probabilities = probabilities
        self.strict = strict
        self.overwrite = overwrite
        self.failures: list[str] = []
        self.group: Any = None

    def select(self) -> list[dict[str, Any]]:
        """The cases to predict: those that are not finished and whose files can be read.

        The others are logged; :meth:`finish` tells of bad files again.

        Returns:
            Items ``{"image": path, or those of the channels}``, the same in every process.

        Raises:
            Med3dError: if answers that are there were made by or of something else, if answers would replace images or
                each other, or, where it is strict, with every problem of the files.
            OutputError: if the folder cannot be written to.
        """
        if dist.is_available() and dist.is_initialized():
            self.group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self.images = self.store.without_answers()
        left = self.images if self.overwrite else self._unfinished()
        check_writable(self.store.output_dir)
        cases = [self._item(image) for image in left]
        check = partial(check_case, n_seg_classes=2, in_channels=self.in_channels)
        found = [problems for problems, _ in check_each(check, cases)] if cases else []
        problems = [problem for case in found for problem in case]
        if self.strict:
            raise_for(problems)
        # Of several processes, each knows all that are bad; one tells them.
        self.failures = ["\n- ".join(case) for case in found if case]
        if idist.get_rank() > 0:
            self.failures = []
        elif self.failures:
            logger.warning("left out %d of %d cases:\n%s", len(self.failures), len(self.images), self._listed())
        return [case for case, wrong in zip(cases, found, strict=True) if not wrong]

    def _item(self, image: str) -> dict[str, Any]:
        files = self.store.cases[image]
        return {"image": files if len(files) > 1 else image}

    def _unfinished(self) -> list[str]:
        self.store.check_record()
        states = gather([self.store.examine(image, self.probabilities) for image in shard(self.images)])
        if problems := [problem for _, problem in states if problem]:
            more = f"\n... and {len(problems) - MAX_LINES} more" if len(problems) > MAX_LINES else ""
            raise Med3dError("\n".join(problems[:MAX_LINES]) + more + f"\n{ADVICE}")
        left = [image for image, (finished, _) in zip(self.images, states, strict=True) if not finished]
        if done := len(states) - len(left):
            logger.info("skipping %d of %d cases, which are finished; --overwrite True repeats them", done, len(states))
        return left

    def iteration(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> Any:
        """MONAI's iteration of an evaluator; a case that fails in it is remembered.

        Args:
            engine: the evaluator.
            batch: of one case, from a :class:`CaseDataset`.
        """
        if FAILURE in batch:
            self._fail(batch["image"], batch[FAILURE][0])
        else:
            try:
                return engine._iteration(engine, batch)
            except Exception as error:
                if self.strict or isinstance(explain(error, {}), OutputError):
                    raise
                self._fail(batch["image"].meta["filename_or_obj"], _describe(error))
        engine.state.output = None  # and with it the memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return []

    def _fail(self, images: Sequence[str], why: str) -> None:
        for image in images:
            self.failures.append(f"{image}: {why}")
            logger.warning("not predicted: %s: %s", image, why)

    def finish(self) -> None:
        """Wait for the other processes, write the tables, and tell what failed.

        The tables have all finished cases of the folder, of earlier runs too.

        Raises:
            Med3dError: if cases failed, with a line for each.
            OutputError: if the tables cannot be written.
        """
        if self.group is not None:
            shares: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(shares, self.failures, group=self.group)
            self.failures = [failure for share in shares for failure in share]
        if idist.get_rank() == 0:
            self._write_tables()
        if self.group is not None:
            dist.barrier(self.group)  # the first process that ends with an error ends the others
        if self.failures:
            raise Med3dError(
                f"not predicted: {len(self.failures)} of {len(self.images)} cases, the others are in "
                f"{self.store.output_dir}:\n{self._listed()}"
            )

    def _listed(self) -> str:
        lines = [f"- {why}" for why in self.failures[:MAX_LINES]]
        more = len(self.failures) - MAX_LINES
        return "\n".join([*lines, *([f"... and {more} more"] if more > 0 else [])])

    def _write_tables(self) -> None:
        records, others = self.store.read_finished()
        if others:
            logger.warning(
                "%d label maps in %s were made with another network or other options, or changed since: "
                "the tables do not have them",
                *(others, self.store.output_dir),
            )
        if not records:
            return
        for name, text in (("structures.json", to_json(records)), ("structures.csv", to_csv(records))):
            path = os.path.join(self.store.output_dir, name)
            with whole_files(path) as (temporary,):
                Path(temporary).write_text(text, encoding="utf-8", newline="")
        logger.info("%d cases are finished; their structures are in %s", len(records), path)


class CaseDataset(Dataset):
    """MONAI's ``Dataset``, whose cases that cannot be prepared become items that say why.

    Args:
        data: items with an ``image``, a path or those of the channels.
        transform: composed transforms.
        strict: let errors be errors.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Any = None, strict: bool = False) -> None:
        super().__init__(data, transform)
        self.strict = strict

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as error:
            if self.strict:
                raise
            return {"image": images_of(self.data[index])[0], FAILURE: _describe(error)}


class SavePredictiond(MapTransform):
    """Writes a label map on its image's grid, of DICOM as a DICOM segmentation too, its record, and what is wanted.

    Args:
        keys: the label map, ``(1, depth, height, width)``, with the image's path and affine in its meta data.
        store: the folder of the answers.
        class_names: names of the classes, background first.
        prob_key: probabilities of the classes in 255ths, ``(class, depth, height, width)``; written where they are.
        quicklook: whether to draw a picture.
    """

    def __init__(
        self,
        keys: KeysCollection,
        store: PredictionStore,
        class_names: Sequence[str],
        prob_key: str = "prob",
        quicklook: bool = True,
    ) -> None:
        super().__init__(keys)
        self.store = store
        self.class_names = list(class_names)
        self.prob_key = prob_key
        self.quicklook = quicklook

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write one case; the data stay as they are.

        Raises:
            Med3dError: if the image can no longer be read, or is of another shape.
            OutputError: if an answer cannot be written.
        """
        for key in self.key_iterator(data):
            meta = data[key].meta
            kind = np.min_scalar_type(len(self.class_names) - 1)
            labels = _as_array(data[key])[0].astype(kind, copy=False)
            prob = _as_array(data[self.prob_key]) if self.prob_key in data else None
            self._save(meta["filename_or_obj"], labels, prob, np.asarray(meta["affine"], np.float64))
        return dict(data)

    def _save(self, image: str, labels: NDArray[Any], prob: NDArray[Any] | None, affine: NDArray[np.float64]) -> None:
        voxels = _read(image, labels.shape)
        structures = measure_structures(labels, voxels, affine, self.class_names)
        picture = self._draw(image, labels, voxels, affine, structures) if self.quicklook else None
        segments = self._segment(image, labels, affine) if self.store.place(image).segmentation else None

        def write_labels(path: str) -> None:
            write_nifti(path, labels, affine)

        def write_probabilities(path: str) -> None:
            assert prob is not None
            write_nifti(path, np.moveaxis(prob, 0, -1), affine, slope=1 / 255)

        def write_segments(path: str) -> None:
            assert segments is not None
            Path(path).write_bytes(segments)

        def write_picture(path: str) -> None:
            assert picture is not None
            Path(path).write_bytes(picture)

        self.store.write(
            image,
            write_labels,
            structures,
            write_probabilities if prob is not None else None,
            write_segments if segments else None,
            write_picture if picture else None,
        )
        found = [row for row in structures if row["voxels"]]
        named = [f"{row['structure']} {in_millilitres(row)}" for row in found[:SHOWN]]
        named += [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        logger.info("%s: %s", self.store.place(image).label_map, ", ".join(named) or "no structure")

    def _segment(self, image: str, labels: NDArray[Any], affine: NDArray[np.float64]) -> bytes | None:
        """The DICOM segmentation, or None and a warning: no label map is lost for slices that it cannot refer to."""
        network = f"MedicalNet {self.store.settings.variant}"
        content = io.BytesIO()
        try:
            files = read_series(image).files
            dicom_seg.write_segmentation(content, labels, affine, files, self.class_names, network, __version__)
        except Med3dError as error:
            logger.warning("%s: no DICOM segmentation could be written, the label map alone is (%s)", image, error)
            return None
        return content.getvalue()

    def _draw(self, image: str, labels: NDArray[Any], *others: Any) -> bytes | None:
        """The picture, or None and a warning: no label map is lost for it."""
        voxels, affine, structures = others
        try:
            return draw_quicklook(labels, voxels, affine, structures, self.store.place(image).case)
        except Exception as error:
            logger.warning("%s: no quick look could be drawn (%s)", image, reason(error))
            return None


def deal(dataset: Dataset) -> DistributedSampler | list[int]:
    """A sampler that deals the cases among the processes, each case to one of them, in their order.

    Of an inference that skips what is finished, fewer cases than processes may be left, which MONAI's sampler refuses;
    see :func:`~med3d_nets.distributed.each_once` for others.
    """
    return shard(range(len(dataset))) if isinstance(dataset, CaseDataset) else each_once(dataset)


def _read(image: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The intensities as they are in the file."""
    problems: list[str] = []
    read = read_volume(image, problems)
    if read is None or read[0].shape[:3] != shape:
        found = problems[0] if read is None else f"{image}: found shape {read[0].shape}; expected {shape}, as before"
        raise Med3dError(f"{found}; was it changed in the meantime?")
    return read[0]


def _as_array(volume: Tensor) -> NDArray[Any]:
    return torch.as_tensor(volume).cpu().numpy()


def _describe(error: Exception) -> str:
    """What to tell of an error; of one that is nobody's fault, the log has the traceback."""
    if shown := explain(error, {}):
        return str(shown)
    logger.warning("unexpected error", exc_info=error)
    cause: BaseException = error
    while cause.__cause__:  # MONAI says in which transform it was
        cause = cause.__cause__
    return reason(cause)
