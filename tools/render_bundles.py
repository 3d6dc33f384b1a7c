"""Render the bundles and the README's table of variants from ``med3d_nets.variants`` and ``tools/templates``.

``python tools/render_bundles.py`` writes; with ``--check`` it writes nothing and fails on any byte that differs and on
any file or folder too many. A template's ``[[name]]`` is replaced by that fact of the variant; nothing else is.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from med3d_nets import __version__
from med3d_nets.resnet import DEPTHS, STRIDES
from med3d_nets.variants import VARIANTS, Variant

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = ROOT / "tools" / "templates"
CONSTRAINTS = ROOT / "constraints.txt"
IGNORED = ("models", "eval", "predictions", "features", "data")
"""Folders that using a bundle fills; git ignores them."""

TABLE = re.compile(r"(?<=<!-- variants -->\n).*?(?=<!-- /variants -->)", re.DOTALL)
TABLE_GPU = 24
"""Memory in GB of the GPU that the README's table names."""

DILATIONS = (1, 1, 2, 4)
SHORTCUTS = {"A": "a strided slice, padded with zero channels", "B": "a 1 x 1 x 1 convolution"}
BLOCKS = {
    "BasicBlock": "A basic block is two 3 x 3 x 3 convolutions",
    "Bottleneck": "A bottleneck is a 1 x 1 x 1, a 3 x 3 x 3 and a 1 x 1 x 1 convolution",
}
DATA = {
    8: """\
The authors aggregated eight public segmentation data sets of CT and MR, of several organs and pathologies, which they
call 3DSeg-8. Table 1 of the paper lists them.""",
    23: """\
The authors' repository says that this file was trained on "more datasets (23 datasets)" than the paper's eight. Which
these are was not published there; people who asked in its issues got no list. Any public data set may be among them, so
a score on a public data set may be too good.""",
}
"""What is known of the data that the weights were pretrained on, by their number."""

EXPERIMENTS = {
    8: """\
They are for transfer to lung segmentation (LungSeg, Dice) and to the classification of pulmonary nodules (NoduleCls,
accuracy); the paper describes data and training.""",
    23: """\
They are for transfer to the segmentation of the left and the right lung in the Visceral data set (LungSeg, Dice).""",
}
"""What the published scores were measured on, by the number of data sets."""


def facts(variant: Variant) -> dict[str, str]:
    """What a template may name, as text."""
    return {
        "name": variant.name,
        "bundle": variant.bundle,
        "depth": str(variant.depth),
        "shortcut": variant.shortcut,
        "datasets": str(variant.datasets),
        "filename": variant.filename,
        "hub_repo": variant.hub_repo,
        "sha256": variant.sha256,
        "tensors": str(variant.encoder_tensors),
        "values": f"{variant.encoder_values:,}",
        "megabytes": f"{variant.encoder_values * 4 / 1e6:.0f}",
        "version": __version__,
        "data": DATA[variant.datasets],
        "experiment": EXPERIMENTS[variant.datasets],
        "scores": scores_table(variant),
        **architecture(variant),
        **memory(variant),
        **tested_versions(),
    }


def architecture(variant: Variant) -> dict[str, str]:
    """What the diagram of the network shows."""
    block, blocks = DEPTHS[variant.depth]
    known = {
        "block": "bottlenecks" if block.__name__ == "Bottleneck" else "basic blocks",
        "block_words": BLOCKS[block.__name__],
        "shortcut_words": SHORTCUTS[variant.shortcut],
    }
    widths = (64 * block.expansion * 2**index for index in range(4))
    for stage, values in enumerate(zip(blocks, widths, STRIDES[1:], DILATIONS, strict=True), start=1):
        for name, value in zip(("blocks", "channels", "stride", "dilation"), values, strict=True):
            known[f"{name}{stage}"] = str(value)
    if blocks == (1, 1, 1, 1):
        known["block"] = "basic block"
    return known


def memory(variant: Variant) -> dict[str, str]:
    """Memory that training needs, and batch sizes by the memory of the GPU in GB."""
    batches = {f"batch_{gpu}gb": str(variant.batch_size(gpu) or "none") for gpu in (8, 16, 24, 80)}
    first = f"{(variant.fixed_mb + variant.volume_mb) / 1000:.1f}"
    return {"fixed_mb": f"{variant.fixed_mb:,}", "volume_mb": f"{variant.volume_mb:,}", "first_gb": first, **batches}


def tested_versions() -> dict[str, str]:
    """Versions of other packages that the tests run with, by ``tested_`` and the package's name."""
    pins = re.findall(r"^([\w-]+)==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    return {f"tested_{name.replace('-', '_')}": version for name, version in pins}


def scores_table(variant: Variant) -> str:
    """The scores that MedicalNet's authors published for this file, in Markdown."""
    scores = {"LungSeg, Dice": variant.lung_dice, "NoduleCls, accuracy": variant.nodule_accuracy}
    lines = ["| published by MedicalNet's authors | trained from scratch | from this file |", "|---|---|---|"]
    lines += [f"| {name} | {pair[0]:.2f}% | {pair[1]:.2f}% |" for name, pair in scores.items() if pair]
    return "\n".join(lines)


def fill(template: str, values: dict[str, str]) -> str:
    """Replace each ``[[name]]``.

    Raises:
        KeyError: if a name is not known.
    """
    return re.sub(r"\[\[(\w+)\]\]", lambda match: values[match[1]], template)


def render() -> dict[Path, bytes]:
    """Every rendered file's path below the project's root, with its content."""
    rendered = {}
    for variant in VARIANTS:
        values = facts(variant)
        for template in sorted(path for path in TEMPLATES.rglob("*") if path.is_file()):
            target = Path("bundles", variant.bundle, template.relative_to(TEMPLATES))
            rendered[target] = fill(template.read_text(encoding="utf-8"), values).encode()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rendered[Path("README.md")] = TABLE.sub(lambda _: variants_table(), readme).encode()
    return rendered


def variants_table() -> str:
    """The table of variants, in Markdown."""
    columns = ["variant", "depth", "shortcut", "data sets", "encoder values", "file", "SHA-256"]
    columns += ["memory to train, batch 1", f"batch on {TABLE_GPU} GB"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for variant in VARIANTS:
        known = facts(variant)
        digest = f"`{variant.sha256[:16]}…`"
        row = [f"`{variant.name}`", known["depth"], known["shortcut"], known["datasets"], known["values"]]
        row += [f"{known['megabytes']} MB", digest, f"{known['first_gb']} GB", known[f"batch_{TABLE_GPU}gb"]]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def differences(rendered: dict[Path, bytes]) -> list[str]:
    """What in the project's tree is not as rendered."""
    found = []
    for path, content in rendered.items():
        file = ROOT / path
        if not file.is_file():
            found.append(f"{path}: missing")
        elif file.read_bytes() != content:
            found.append(f"{path}: differs")
    folders = {parent for path in rendered for parent in path.parents}
    for file in sorted((ROOT / "bundles").rglob("*")):
        path = file.relative_to(ROOT)
        if path not in rendered and path not in folders and not _filled_by_use(path):
            found.append(f"{path}{'/' if file.is_dir() else ''}: not rendered from anything")
    return found


def _filled_by_use(path: Path) -> bool:
    """Whether git ignores the path: ``bundles/<a rendered bundle>/models`` and the like."""
    parts = path.parts
    if "__pycache__" in parts:
        return True
    return len(parts) > 2 and parts[1] in {variant.bundle for variant in VARIANTS} and parts[2] in IGNORED


def main() -> int:
    """Write or check; the exit status is 1 if the check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    rendered = render()
    if not check:
        for path, content in rendered.items():
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_bytes(content)
    found = differences(rendered)
    for line in found:
        print(line, file=sys.stderr)
    if found:
        print("run 'python tools/render_bundles.py' and remove what is too many", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
