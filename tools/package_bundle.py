"""Package a bundle's folder, with its weights, as a zip that ``python -m monai.bundle download`` takes.

    python tools/package_bundle.py bundles/medicalnet_resnet_10

The same input gives the same bytes. What is wrong with the folder or its weights is an error before anything is
written.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the tool runs from a checkout that is not installed

from med3d_nets import commands, model_card, packaging  # noqa: E402
from med3d_nets.classification.model_card import Classifier, fill_classifier  # noqa: E402
from med3d_nets.errors import Med3dError  # noqa: E402
from med3d_nets.model_card import Trained, Weights  # noqa: E402
from med3d_nets.packaged_weights import KINDS, find_weights  # noqa: E402
from med3d_nets.packaging import CLASSIFICATION, CONFIGS, README, Bundle  # noqa: E402
from med3d_nets.weights import file_sha256  # noqa: E402

SIZES = ("input_D", "input_H", "input_W")
RECORDED = ("task", "class_names", "in_channels", "margin_mm", "keep_size", "spacing", "input_size")
"""Settings of a classifier that its training takes as options of the same name."""
TEXTS = ("bundle", "weights", "models", "classifier", "name", "version", "changelog", "dst", "scores", "metrics")
"""Options that are texts: Fire would read a changelog with a comma as a tuple."""


def package(
    bundle: str,
    *,
    weights: str | None = None,
    models: str | None = None,
    classifier: str | None = None,
    name: str | None = None,
    version: str | None = None,
    changelog: str | None = None,
    dst: str = "dist",
    scores: str | None = None,
    metrics: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write ``<dst>/<name>_v<version>.zip`` and print a report.

    For trained weights the packaged configs get the recorded settings as their defaults, so that ``monai.bundle.load``
    builds the right network, and inference needs no option. ``metadata.json`` and ``docs/README.md`` say what the
    weights are.

    Args:
        bundle: the bundle's folder.
        weights: ``"trained"``: ``model.pt`` and a classifier, or the one that is there; or ``"pretrained"``:
            ``pretrained.pt`` alone. By default trained if there are some, otherwise pretrained.
        models: folder of the weights, such as a training's ``ckpt_dir``; by default ``models`` in the bundle.
        classifier: folder of a classifier, or of its folds; by default ``classification`` in that of the weights. Of
            folds all are packaged, and answer together; a ``model.pt`` beside them goes before.
        name: name of the package; by default the folder's.
        version: version of the package, ``X.Y.Z``; by default that in the metadata.
        changelog: what is new in this version.
        dst: folder to write to.
        scores: ``metrics_summary.csv`` of an evaluation of the trained segmentation.
        metrics: ``metrics.json`` of an evaluation of the classifier; by default that in the bundle's
            ``eval/classification``, if it is there and the classifier is the bundle's own.
        overwrite: replace an existing zip.

    Raises:
        Med3dError: if the folder is no bundle, its weights are missing or do not fit, or the zip is there already.
            Nothing is written then.
        OSError: if it cannot be written; an existing zip is left as it was.
    """
    texts = {"bundle": bundle, "weights": weights, "models": models, "classifier": classifier, "name": name}
    texts |= {"version": version, "changelog": changelog, "dst": dst, "scores": scores, "metrics": metrics}
    _check_options(texts, overwrite)
    source = packaging.read_bundle(Path(bundle))
    name = _check_name(source.folder.resolve().name if name is None else name)
    version = _check_version(source.configs[packaging.METADATA].get("version") if version is None else version)
    target = Path(dst) / f"{name}_v{version}.zip"
    if target.exists() and not overwrite:
        raise Med3dError(f"{target}: exists already; replace it with --overwrite, or give another --version or --dst")
    paths = [None if path is None else Path(path) for path in (models, classifier, scores, metrics)]
    found = find_weights(source, weights, *paths)
    kind = "trained" if found[0].settings else "pretrained"
    source.set_version(version, changelog, f"packaged with {kind} weights")
    weights_files = {path: file for part in found for path, file in part.files.items()}
    files = _contents(source, found, name)
    for path, (file, _) in weights_files.items():
        files[str(Path(path).with_suffix(".json").as_posix())] = file.with_suffix(".json").read_bytes()
    entries = packaging.write_package(target, name, files, weights_files)
    print(_report(target, name, version, kind, entries))


def _check_options(texts: Mapping[str, str | None], overwrite: bool) -> None:
    """Refuse what Fire makes of ``--dst`` alone (``"True"``) and of ``--overwrite no`` (a text, counting as yes)."""
    for option, value in texts.items():
        if value in ("", "True"):
            raise Med3dError(f"--{option} takes a value, but {'it is empty' if value == '' else 'stands alone'}")
    if not isinstance(overwrite, bool):
        raise Med3dError(f"--overwrite takes no value, but got {overwrite!r}")
    if texts["weights"] not in (None, *KINDS):
        raise Med3dError(f"--weights is {texts['weights']!r}, expected one of {', '.join(KINDS)}")
    packaging.check_inert("--changelog", texts["changelog"] or "")


def _check_name(name: str) -> str:
    # MONAI takes what stands before the first dot of an archive's name for the folder in it.
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
        raise Med3dError(f"--name is {name!r}, expected letters, digits, _ and - alone: it names a folder and a URL")
    return name


def _check_version(version: Any) -> str:
    if not isinstance(version, str) or not re.fullmatch(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}", version):
        raise Med3dError(f"version is {version!r}, expected three whole numbers as in 1.0.2")
    return version


def _contents(bundle: Bundle, found: Sequence[Weights], name: str) -> dict[str, bytes]:
    """The packaged files but the weights, with what is known of the weights put in."""
    own = bundle.configs[packaging.METADATA]
    for part in found:
        if isinstance(part, Classifier):
            _fill_classification(bundle, part)
        else:
            model_card.fill_metadata(own, part, bundle.folder / packaging.METADATA)
        if isinstance(part, Trained):
            _fill_segmentation(bundle, part)
    model_card.describe(own, found)
    text = bundle.readme()
    sections = {
        "performance": model_card.performance_section(found),
        "weights": model_card.weights_section(found, name),
    }
    for section, content in sections.items():
        text = text if content is None else model_card.fill_section(text, section, content, bundle.folder / README)
    return bundle.content() | {README: text.encode()}


def _fill_segmentation(bundle: Bundle, part: Trained) -> None:
    """Have the configs build the packaged network, and training go on from it."""
    settings = part.settings
    network = {"n_seg_classes": settings.n_seg_classes, "in_channels": settings.in_channels, "head": settings.head}
    training: dict[str, Any] = dict(zip(SIZES, settings.input_size, strict=True))
    training |= {"class_names": settings.class_names, "fill_empty_with_noise": settings.fill_empty_with_noise}
    training |= {"pretrain_path": "$@bundle_root + '/models/model.pt'", "new_layer_names": []}
    for path, known in zip(CONFIGS, (network | training, network), strict=True):
        bundle.update(path, known)


def _fill_classification(bundle: Bundle, part: Classifier) -> None:
    """Have inference find all networks, and training go on from the first as it was trained."""
    if missing := [path for path in CLASSIFICATION if path not in bundle.configs]:
        raise Med3dError(f"{bundle.folder}: lacks {', '.join(missing)}; render it anew")
    metadata, train, inference = CLASSIFICATION
    fill_classifier(bundle.configs[metadata], part, bundle.folder / metadata)
    settings, first = part.settings, next(iter(part.files))
    known = {name: getattr(settings, name) for name in RECORDED}
    window = settings.intensity
    known["intensity"] = [window["lower"], window["upper"]] if window else "mr"
    bundle.update(train, known | {"pretrain_path": f"$@bundle_root + '/{first}'", "new_layer_names": []})
    bundle.update(inference, {"folds": part.folds})


def _report(target: Path, name: str, version: str, kind: str, entries: list[str]) -> str:
    lines = {
        "package": target,
        "size": f"{target.stat().st_size:,} bytes",
        "sha256": file_sha256(target),
        "weights": kind,
        "entries": f"{len(entries)} below {name}/: {', '.join(entries)}",
    }
    width = max(map(len, lines)) + 2
    shown = [f"{key + ':':<{width}}{value}" for key, value in lines.items()]
    return "\n".join(
        [
            *shown,
            "",
            "Put it on any web server. To fetch it (MONAI checks no digest, and keeps a zip or folder of that name):",
            f"  python -m monai.bundle download --name {name} --url <where you put it>/{target.name} --bundle_dir .",
            "Or share it on the Hugging Face hub (pip install huggingface_hub), from an unpacked copy, not from the",
            "folder that you trained in, since everything in the folder is pushed:",
            f"  python -m zipfile -e '{target}' <folder>",
            f"  python -m monai.bundle push_to_hf_hub --repo <you>/{name} --name {name} --bundle_dir <folder> "
            f"--version {version}",
        ]
    )


def main() -> None:
    """Run :func:`package` with the options of the command line."""
    commands.run_tool(package, TEXTS)


if __name__ == "__main__":
    main()
