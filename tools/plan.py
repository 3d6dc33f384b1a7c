"""Look at a list of training cases and propose the settings of the patch recipe, with reasons, as ``med3d plan`` does.

    python tools/plan.py --data_root /data/Task04_Hippocampus --img_list train.txt
    python tools/plan.py --data_root /data/nodules --spacing "[0.7, 0.7, 1]" --batch_size 2 --out plan.json

Training plans by the same rules; each value that is given here is given there by the same option.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the tool runs from a checkout that is not installed

from med3d_nets import commands  # noqa: E402
from med3d_nets.cli.plan import plan  # noqa: E402

__all__ = ["plan"]


def main() -> None:
    """Run :func:`~med3d_nets.cli.plan.plan` with the options of the command line."""
    commands.run_tool(plan, sizes={"batch_size": "the planner's", "patch_size": "the planner's"})


if __name__ == "__main__":
    main()
