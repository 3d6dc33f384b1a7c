"""``python -m med3d_nets`` is ``med3d``."""

from med3d_nets.cli import main

if __name__ == "__main__":
    main()
