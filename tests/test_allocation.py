"""Memory that an iteration frees serves the next one."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest
from conftest import BUNDLE

FAULTS = """
import resource, sys, torch
from med3d_nets.allocation import keep_freed_memory

print(keep_freed_memory() if sys.argv[1] == "keep" else None)
torch.set_num_threads(1)
network = torch.nn.Sequential(*(torch.nn.Conv3d(width, 8, 3, padding=1) for width in (1, 8, 8)))
image = torch.ones(1, 1, 40, 56, 40)
counts = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    network(image).sum().backward()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(counts[3:]))
"""


def faults(mode: str, **variables: str) -> tuple[str, int]:
    """What was answered, and how many pages five training iterations asked the system for."""
    own = ("MALLOC_", "GLIBC_TUNABLES")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True, env=environment | variables
    )
    accepted, count = done.stdout.split()
    return accepted, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_for_the_next_iteration() -> None:
    accepted, kept = faults("keep")
    assert accepted == "True"
    assert kept < 0.25 * faults("leave")[1]


@pytest.mark.parametrize(
    "variable", ["MALLOC_TRIM_THRESHOLD_=131072", "GLIBC_TUNABLES=glibc.malloc.trim_threshold=131072"]
)
def test_a_users_own_setting_stays(variable: str) -> None:
    name, value = variable.split("=", 1)
    assert faults("keep", **{name: value})[0] == "False"


@pytest.mark.parametrize("config", ["train.json", "classification/train.json"])
def test_training_keeps_it_before_the_first_iteration(config: str) -> None:
    steps = json.loads((BUNDLE / "configs" / config).read_text())["training"]
    assert steps[-2:] == ["$med3d_nets.allocation.keep_freed_memory()", "$@train::trainer.run()"]
