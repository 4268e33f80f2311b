"""Fuzzes every parser of untrusted bytes, led by coverage (atheris): a typed error or correct data, in bounds.

    python -P tests/torture/fuzz.py --seconds 120 --seed 1                  # all targets, each for its share
    python -P tests/torture/fuzz.py --list
    python -P tests/torture/fuzz.py --target lineage --seconds 60
    python -P tests/torture/fuzz.py --replay build/fuzz/lineage-1f0c...     # what a crash was; needs no atheris

Targets whose bytes reach C run on kernels with ASan and UBSan (make build/asan-site). With --corpus DIR what was found
interesting is kept and the next run goes on from there. Crashes are kept in build/fuzz.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MEMORY_BYTES = 256 << 20  # of address space, beyond what a target has when it begins
HANG_SECONDS = 300  # without an end: far more than the slowest machine needs; slow inputs are found by their CPU time
sys.path[:0] = [str(HERE), *(str(HERE.parent / name) for name in ("hostile", "crash"))]

from sanitizers import ASAN_SITE, asan_environment  # noqa: E402


def run_process(targets: Sequence[str], options: argparse.Namespace, seconds: float, site: Path | None) -> list[Any]:
    """Fuzzes some targets, one after the other, in a process of its own; what each came to."""
    command = [sys.executable, "-P", __file__, "--seconds", str(seconds), "--seed", str(options.seed)]
    command += ["--corpus", str(options.corpus)] if options.corpus else []
    command += ["--crashes", str(options.crashes)]
    environment = dict(os.environ)
    if site:
        environment["PYTHONPATH"] = os.pathsep.join([str(site), environment.get("PYTHONPATH", "")])
        environment |= asan_environment("max_allocation_size_mb=256:quarantine_size_mb=16:malloc_context_size=2")
    run = subprocess.run([*command, "--fuzz", *targets], stdout=subprocess.PIPE, text=True, env=environment)
    found = [json.loads(line) for line in run.stdout.splitlines()]
    if run.returncode or len(found) != len(targets):
        found.append({"target": " ".join(targets), "runs": 0, "failed": True, "said": f"status {run.returncode}"})
    return found


# -- in that process ---------------------------------------------------------------------------------------------------
def fuzz(names: Sequence[str], options: argparse.Namespace) -> None:
    """Instruments cowengine once, forks for each target, and prints a line of JSON for each."""
    import atheris

    _quiet()
    with contextlib.redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["cowengine"]):
        import fuzz_targets
    targets = {name: fuzz_targets.TARGETS[name] for name in names}
    shares = sum(target.share for target in targets.values())
    seeds = {name: target.seeds() for name, target in targets.items()}
    for name, target in targets.items():
        seconds = max(1, round(options.seconds * target.share / shares))
        with tempfile.TemporaryDirectory(prefix="cowengine-fuzz-") as folder, open(Path(folder) / "log", "w+") as log:
            corpus = Path(options.corpus or folder) / name
            corpus.mkdir(parents=True, exist_ok=True)
            for number, data in enumerate(seeds[name]):
                (corpus / f"seed-{number}").write_bytes(data)
            words = Path(folder) / "words"
            words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
            arguments = [
                "fuzz", f"-seed={options.seed % 2**32 or 1}", f"-max_total_time={seconds}", "-print_final_stats=1",
                f"-max_len={target.bytes_max}", f"-timeout={HANG_SECONDS}",
                f"-artifact_prefix={options.crashes}/{name}-",
                "-rss_limit_mb=0", *([f"-dict={words}"] if target.words else []), str(corpus),
            ]  # fmt: skip
            started = time.monotonic()
            child = os.fork()
            if child == 0:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                _limit_memory()
                atheris.Setup(arguments, fuzz_targets.contract(target.parse), enable_python_coverage=True)
                atheris.Fuzz()
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            log.seek(0)
            told = _told(name, status, log.read())
        print(json.dumps(told | {"seconds": round(time.monotonic() - started, 1)}), flush=True)


def _quiet() -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"')


def _limit_memory() -> None:
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        return  # its shadow is terabytes; it limits each allocation instead
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _told(name: str, status: int, log: str) -> dict[str, Any]:
    runs = [line.rsplit(None, 1)[-1] for line in log.splitlines() if line.startswith("stat::number_of_executed_units")]
    return {
        "target": name, "runs": int(runs[-1]) if runs else 0, "failed": bool(status) or not runs,
        "said": log[-6000:] if status or not runs else "",
    }  # fmt: skip


# -- a crash again -----------------------------------------------------------------------------------------------------
def replay(path: Path) -> int:
    """One input, without a fuzzer; 1 if it breaks the contract."""
    import fuzz_targets

    _quiet()
    name, data = path.name.rsplit("-", 2)[0], path.read_bytes()
    for kind in ("-crash", "-timeout", "-oom", "-slow"):
        name = name.removesuffix(kind)
    try:
        fuzz_targets.contract(fuzz_targets.TARGETS[name].parse)(data)
    except BaseException:
        traceback.print_exc()
        return 1
    print(f"{name}: {len(data)} bytes, a typed error or correct data")
    return 0


# -- the command line --------------------------------------------------------------------------------------------------
def groups(
    names: Sequence[str], targets: dict[str, Any], options: argparse.Namespace
) -> Iterator[tuple[list[str], Path | None]]:
    """The targets by the build that they run on."""
    site = None if options.plain or not options.sanitized_site.is_dir() else options.sanitized_site
    in_kernels = [name for name in names if targets[name].in_kernels]
    others = [name for name in names if not targets[name].in_kernels]
    yield from ((part, where) for part, where in ((others, None), (in_kernels, site)) if part)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--row", action="store_true", help="end with a line of JSON for the scoreboard")
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")
    parser.add_argument("--target", action="append", help="nothing but this; may be given more than once")
    parser.add_argument("--crashes", type=Path, default=ROOT / "build" / "fuzz", help="where they are kept")
    parser.add_argument("--sanitized-site", type=Path, default=ASAN_SITE)
    parser.add_argument("--corpus", type=Path, help="where inputs are kept for the next run")
    parser.add_argument("--plain", action="store_true", help="kernels without sanitizers")
    parser.add_argument("--list", action="store_true", help="the targets, and nothing else")
    parser.add_argument("--replay", type=Path, metavar="FILE")
    parser.add_argument("--fuzz", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fuzz:
        fuzz(options.fuzz, options)
        return 0
    if options.replay:
        return replay(options.replay)
    from fuzz_targets import TARGETS

    if options.list:
        print("\n".join(f"{name:16} {target.what}" for name, target in TARGETS.items()))
        return 0
    skipped = []
    options.crashes.mkdir(parents=True, exist_ok=True)
    names = options.target or list(TARGETS)
    if set(names) - TARGETS.keys():
        parser.error(f"no such target: {', '.join(sorted(set(names) - TARGETS.keys()))}")
    if importlib.util.find_spec("atheris") is None:
        skipped, names = ["atheris is missing: pip install cowengine[torture]"], []
    elif not options.plain and not options.sanitized_site.is_dir() and any(TARGETS[name].in_kernels for name in names):
        skipped = ["kernels without sanitizers: make build/asan-site"]
    return run(names, TARGETS, skipped, options)


def run(names: Sequence[str], targets: dict[str, Any], skipped: list[str], options: argparse.Namespace) -> int:
    """Fuzzes, tells people, and the scoreboard."""
    import fuzz_formats
    from row import Tally, tell

    parts = list(groups(names, targets, options))
    shares = sum(targets[name].share for name in names)
    seconds = [options.seconds * sum(targets[name].share for name in part) / shares for part, _ in parts]
    with tempfile.TemporaryDirectory(prefix="cowengine-fuzz-") as folder, ThreadPoolExecutor(options.workers) as pool:
        for name, data in (fuzz_formats.volumes() if names else {}).items():
            (Path(folder) / name).write_bytes(data)
        os.environ["COWENGINE_FUZZ_VOLUMES"] = folder
        jobs = [
            pool.submit(run_process, part, options, wanted, site)
            for (part, site), wanted in zip(parts, seconds, strict=True)
        ]
        found = [told for job in jobs for told in job.result()]
    tally = Tally(sum(told["runs"] for told in found), skipped="; ".join(skipped))
    for told in found:
        rate = told["runs"] / max(told.get("seconds", 1), 1)
        print(f"{told['target']:16} {told['runs']:>12,} executions {rate:>10,.0f}/s {'FAILED' * told['failed']}")
        if told["failed"]:
            tally.violation(f"{told['target']}: {told['said']}\nthe input again: --replay FILE of {options.crashes}")
    return tell(tally, options, "executions")


if __name__ == "__main__":
    sys.exit(main())
