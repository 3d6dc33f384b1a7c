"""``python -m med3d_nets.checking DATA``: see :func:`~med3d_nets.checking.command.check`."""

from med3d_nets.checking.command import check
from med3d_nets.commands import run_tool

if __name__ == "__main__":
    run_tool(check, texts=("data", "data_root", "img_list", "val_list", "task", "patient_pattern", "out"))
