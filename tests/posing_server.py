"""`optimd-server` on a machine that seems to have a GPU."""

from __future__ import annotations

import threading

import posing_device
from optimd_service.entry import main

if __name__ == "__main__":
    for where, name, pose in posing_device.POSE:
        setattr(where, name, pose)
    posing_device.barred = threading.main_thread()
    main()
