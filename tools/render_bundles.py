"""Render the bundles and the README's table of variants from ``med3d_nets.variants`` and ``tools/templates``.

``python tools/render_bundles.py`` writes; with ``--check`` it writes nothing and fails on any byte that differs and on
any file too many. A template's ``[[name]]`` is replaced by that fact of the variant; nothing else is.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from med3d_nets import __version__
from med3d_nets.variants import VARIANTS, Variant

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = ROOT / "tools" / "templates"
IGNORED = ("models", "eval", "predictions", "data")
"""Folders that using a bundle fills; git ignores them."""

TABLE = re.compile(r"(?<=<!-- variants -->\n).*?(?=<!-- /variants -->)", re.DOTALL)


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
    }


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
        for template in sorted(path for path in TEMPLATES.rglob("*") if path.is_file()):
            target = Path("bundles", variant.bundle, template.relative_to(TEMPLATES))
            rendered[target] = fill(template.read_text(encoding="utf-8"), facts(variant)).encode()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rendered[Path("README.md")] = TABLE.sub(lambda _: variants_table(), readme).encode()
    return rendered


def variants_table() -> str:
    """The table of variants, in Markdown."""
    lines = [
        "| variant | depth | shortcut | data sets | encoder values | file | SHA-256 |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        known = facts(variant)
        lines.append(
            f"| `{variant.name}` | {variant.depth} | {variant.shortcut} | {variant.datasets} | {known['values']} "
            f"| {known['megabytes']} MB | `{variant.sha256[:16]}…` |"
        )
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
    for file in sorted((ROOT / "bundles").rglob("*")):
        path = file.relative_to(ROOT)
        if file.is_file() and path not in rendered and not set(path.parts) & set(IGNORED):
            found.append(f"{path}: not rendered from anything")
    return found


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
