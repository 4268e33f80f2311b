"""The row of the kernels' branches names those that no test takes, and tells the source's from Cython's.

It needs build/gcov-site; where that was not built, what runs on it is a test not run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kernel_branches import decisions

SCRIPT = "tests/torture/kernel_branches.py"
RunHarness = Callable[..., dict[str, Any]]

BLIND = """
from cowengine.core.iotable import IOTable
from cowengine.core.mutex import Mutex
from cowengine.core.slotmap import SlotMap

def test_a_free_run():
    slots = SlotMap(IOTable(), 0, 0, Mutex())
    assert slots.find_free(0, 64, 4) == (0, 4)
"""
WRONG = """
def test_wrong():
    assert False
"""
# `while one or two or three:` as Cython writes it, and what it adds to a loop over a list.
WHILE = """
static int __pyx_f_1k_walk(int __pyx_v_one, int __pyx_v_two) {
  /* "cowengine/core/k.pyx":7
 *     while one or two or three:             # <<<<<<<<<<<<<<
*/
  while (1) {
    if (!__pyx_v_one) {
    } else {
      __pyx_t_1 = __pyx_v_one;
      goto __pyx_L3_bool_binop_done;
    }
    if (!__pyx_v_two) {
    } else {
      __pyx_t_1 = __pyx_v_two;
      goto __pyx_L3_bool_binop_done;
    }
    __pyx_t_1 = __pyx_v_three;
    __pyx_L3_bool_binop_done:;
    if (!__pyx_t_1) break;
    if (unlikely(size > 2)) __Pyx_RaiseTooManyValuesError(2);
    if (PyErr_Occurred()) __PYX_ERR(0, 7, __pyx_L1_error)
  }
}
static PyObject *__pyx_pw_1k_step(int __pyx_nargs) {
  if (__pyx_t_1) {
}
"""


def _line(*counts: int) -> dict[str, Any]:
    """A line as gcov tells of it: with the two ways out of it, or with none."""
    ways = [{"fallthrough": not number, "count": count} for number, count in enumerate(counts)]
    return {"count": sum(counts), "branches": ways if len(ways) > 1 else []}


def test_what_cython_adds_is_not_a_branch_and_the_last_operand_is_one_of_its_own() -> None:
    one, two, three = decisions(WHILE)
    assert [(found.file, found.line, found.number) for found in (one, two, three)] == [
        ("cowengine/core/k.pyx", 7, 1), ("cowengine/core/k.pyx", 7, 2), ("cowengine/core/k.pyx", 7, 3),
    ]  # fmt: skip
    # Six times around: four times for the first, twice for the second, and never for the last.
    lines = {
        one.c_line: _line(4, 90), one.c_line + 2: _line(4), one.c_line + 3: _line(4),
        two.c_line: _line(88, 2), two.c_line + 2: _line(2), two.c_line + 3: _line(2),
        three.c_line: _line(88, 6), three.c_line + 1: _line(6),
    }  # fmt: skip
    ways = [found.ways(lines) for found in (one, two, three)]
    assert ways == [{"true": 4, "false": 90}, {"true": 2, "false": 88}, {"true": 0, "false": 88}]


def test_a_branch_that_no_test_takes_is_named(run_harness: RunHarness, tmp_path: Path) -> None:
    (tmp_path / "test_blind.py").write_text(BLIND)
    row = run_harness(SCRIPT, "--tests", str(tmp_path / "test_blind.py"), "--kernels", "slotmap")
    assert row["violations"] > 100 and 10 < row["count"] < 50, row["said"]
    assert re.search(r"slotmap.pyx:\d+: decision 1 is never false: if count >= multiple:", row["said"]), row["said"]
    assert not re.search(r"never true: if count >= multiple:", row["said"]), row["said"]


def test_a_test_that_fails_is_named(run_harness: RunHarness, tmp_path: Path) -> None:
    (tmp_path / "test_wrong.py").write_text(WRONG)
    row = run_harness(SCRIPT, "--tests", str(tmp_path / "test_wrong.py"), "--kernels", "batch")
    assert row["count"] == 0 and "failed: " in row["said"] and "test_wrong" in row["said"], row["said"]
