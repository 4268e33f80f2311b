"""Attacks volume files for as long as you like, with a seed for each that repeats it.

python tests/hostile/mutate.py --minutes 10 --seed 1
python tests/hostile/mutate.py --one logged:123456        (what was done, and what came of it)
"""

from __future__ import annotations

import argparse
import collections
import functools
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hostile_image import Image
from hostile_mutations import mutate
from hostile_others import attack_intent, attack_store, attack_stream
from hostile_steps import attack, work_folder
from hostile_volumes import VOLUMES, build

original = functools.cache(build)


Attack = Callable[[int, Path, float], tuple[str | None, dict[str, str]]]
OTHERS: dict[str, Attack] = {"intent": attack_intent, "store": attack_store, "stream": attack_stream}
NAMES = sorted([*VOLUMES, *OTHERS])


def case(name: str, seed: int) -> tuple[bytes, list[str]]:
    """The hostile file of one seed, and what was done to the volume that it was."""
    image = Image(original(name))
    done = mutate(image, random.Random(f"{name} {seed}"))
    return bytes(image.data), done


def attack_case(name: str, seed: int, folder: Path, cpu_seconds: float = 10.0) -> tuple[str | None, dict[str, str]]:
    """Attacks with the hostile file of one seed."""
    if name in OTHERS:
        return OTHERS[name](seed, folder, cpu_seconds)
    return attack(case(name, seed)[0], folder, seed, cpu_seconds)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="the first case's; each further one has the next")
    parser.add_argument("--cpu", type=float, default=1.0, help="seconds of CPU a step may take")
    parser.add_argument("--only", choices=NAMES, help="nothing but these")
    parser.add_argument("--one", metavar="NAME:SEED")
    options = parser.parse_args()
    os.nice(19)
    with work_folder() as folder:
        if options.one:
            name, seed = options.one.split(":")
            if name in VOLUMES:
                print(*case(name, int(seed))[1], sep="\n")
            wrong, errors = attack_case(name, int(seed), folder, options.cpu)
            print(*(f"{step}: {error}" for step, error in errors.items()), wrong or "nothing wrong", sep="\n")
            return bool(wrong)
        return _run(options, folder)


def _run(options: argparse.Namespace, folder: Path) -> int:
    end = time.monotonic() + 60 * options.minutes
    seed, wrongs, refused = options.seed, 0, 0
    met: collections.Counter[str] = collections.Counter()
    while time.monotonic() < end:
        name = options.only or NAMES[seed % len(NAMES)]
        wrong, errors = attack_case(name, seed, folder, options.cpu)
        refused += "open" in errors
        met.update({error.split(":")[0] for error in errors.values()} or {"no error"})
        if wrong:
            wrongs += 1
            print(f"--one {name}:{seed}\n    {wrong.strip()[-1500:]}", flush=True)
        seed += 1
    print(f"{seed - options.seed} hostile files, {wrongs} wrong, {refused} not opened; {dict(met.most_common())}")
    return bool(wrongs)


if __name__ == "__main__":
    sys.exit(main())
