"""What a process needs to load kernels that were built with sanitizers: `make build/asan-site build/tsan-site`.

The interpreter is the system's own, without any: so their runtimes are loaded before it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ASAN_SITE, TSAN_SITE = ROOT / "build" / "asan-site", ROOT / "build" / "tsan-site"
CUT = "=" * 18  # the line before and behind each report of ThreadSanitizer


def runtimes(*names: str) -> str:
    """The sanitizers' libraries, as the compiler finds them, for LD_PRELOAD."""
    command = [os.environ.get("CC", "gcc"), "-print-file-name="]
    return " ".join(
        subprocess.run([command[0], command[1] + name], capture_output=True, text=True, check=True).stdout.strip()
        for name in names
    )


def asan_environment(options: str) -> dict[str, str]:
    """For AddressSanitizer and UndefinedBehaviorSanitizer, with more options for the first.

    Leaks are not looked for: an interpreter that ends leaves much behind, and all of it would be told.
    """
    return {
        "LD_PRELOAD": runtimes("libasan.so", "libubsan.so"),
        "PYTHONMALLOC": "malloc",  # Python's own allocator would hide what lies behind the end of an object
        "ASAN_OPTIONS": f"detect_leaks=0:allocator_may_return_null=1:{options}",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def tsan_environment(reports: Path) -> dict[str, str]:
    """For ThreadSanitizer, which writes what it finds to `reports`, one file a process.

    `io_sync=0`: that two threads use the same file does not order them.
    """
    return {
        "LD_PRELOAD": runtimes("libtsan.so"),
        "TSAN_OPTIONS": f"exitcode=0:io_sync=0:log_path={reports}",
    }


def tsan_launcher() -> list[str] | None:
    """What to put before the interpreter: its shadow memory may need addresses that are not chosen at random.

    None if it does not start either way.
    """
    environment = os.environ | tsan_environment(Path(os.devnull))
    for launcher in ([], ["setarch", "-R"]):
        try:
            run = subprocess.run([*launcher, sys.executable, "-c", ""], capture_output=True, env=environment)
        except FileNotFoundError:
            continue
        if run.returncode == 0:
            return launcher
    return None


def races_in(report_files: list[Path]) -> dict[str, str]:
    """What ThreadSanitizer found, one report for each pair of places in cowengine; what has none is not ours."""
    found: dict[str, str] = {}
    for file in report_files:
        for report in file.read_text(errors="replace").split(CUT):
            if "WARNING: ThreadSanitizer" in report:
                accesses = report.split("\n\n")[:2]
                places = [_first_place(access) for access in accesses]
                if any(places):
                    found.setdefault(" and ".join(sorted(filter(None, places))), report.strip())
    return found


def _first_place(stack: str) -> str:
    """The innermost function of cowengine in a stack, or nothing."""
    for line in stack.splitlines():
        words = line.split()
        if len(words) > 2 and words[0].startswith("#") and ("cowengine" in line or words[1].startswith("ce_")):
            return words[1]
    return ""
