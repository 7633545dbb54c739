"""`optimd-server` on a machine that seems to have a GPU."""

from __future__ import annotations

from optimd_service.entry import main
from posing_device import POSE

if __name__ == "__main__":
    for where, name, pose in POSE:
        setattr(where, name, pose)
    main()
