"""What importing optimd costs and needs."""

from __future__ import annotations

import subprocess
import sys

import optimd


def in_a_fresh_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_importing_optimd_imports_neither_torch_nor_the_service() -> None:
    code = "import sys, optimd, optimd.cli; print([m for m in sys.modules if m in ('torch', 'optimd_service')])"
    assert in_a_fresh_process(code) == "[]"


def test_without_torch_the_remote_optimizer_says_what_to_install() -> None:
    code = """
import sys, types
sys.modules["torch"] = None
import optimd
try:
    optimd.RemoteOptimizer
except ImportError as error:
    print(error)
"""
    assert in_a_fresh_process(code) == "RemoteOptimizer needs PyTorch: pip install 'optimd[torch]'"


def test_every_name_that_is_exported_exists() -> None:
    assert not [name for name in optimd.__all__ if name != "RemoteOptimizer" and not hasattr(optimd, name)]
    assert not hasattr(optimd, "no_such_name")
