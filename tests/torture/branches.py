"""Whether the engine's own tests take every branch of what decides in it: all of cowengine.engine and cowengine.format.

    python -P tests/torture/branches.py
    python -P tests/torture/branches.py --tests tests/format --parts cowengine.format      # some tests, some parts

TESTS are those that come to it in the least time; the others would only add to what is counted. Counted are the
branches taken; one that is not, a line that no test reaches and a test that fails are violations.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent)]

from row import Tally, harness_parser, tell  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("cowengine.engine", "cowengine.format")
FILES = (
    "tests/adopt/test_every_call_fails.py",
    "tests/adopt/test_flatten.py",
    "tests/adopt/test_settled.py",
    "tests/anchors/test_shortcuts.py",
    "tests/bad_input/test_errnos.py",
    "tests/check/test_check.py",
    "tests/check/test_opened_images.py",
    "tests/check/test_volumes.py",
    "tests/clones/test_clones.py",
    "tests/compaction/test_job.py",
    "tests/faults/test_what_came_first.py",
    "tests/format",
    "tests/full_disk/test_policy.py",
    "tests/hostile/test_impossible_events.py",
    "tests/names",
    "tests/one_barrier",
    "tests/readers/test_moving_file.py",
    "tests/regressions/test_close_beside_others.py",
    "tests/regressions/test_flatten.py",
    "tests/regressions/test_full_disk.py",
    "tests/regressions/test_reclaim.py",
    "tests/repair/test_repair.py",
    "tests/repair/test_salvage.py",
    "tests/repair/test_salvage_rare.py",
    "tests/resize/test_homes.py",
    "tests/resize/test_names_in_the_way.py",
    "tests/seals",
    "tests/security/test_lost_files.py",
    "tests/size/test_trimming.py",
    "tests/space/test_forecast.py",
    "tests/space/test_giving_up.py",
    "tests/space/test_holds.py",
    "tests/space/test_retention.py",
    "tests/store/test_prepared.py",
    "tests/store/test_set_flush.py",
)
ONLY = {  # of files that would take long
    "tests/adopt/test_adopt.py": (
        "test_a_file_that_anybody_has_open_is_refused",
        "test_a_map_with_more_nodes_than_fit_in_memory_is_written_in_pieces",
        "test_an_image_that_was_changed_since_is_not_overwritten",
        "test_an_interrupted_adoption_says_what_to_do_and_can_be_undone_or_gone_on_with",
        "test_another_file_system_is_refused_before_anything_is_done",
        "test_the_volume_can_get_another_name",
        "test_two_that_adopt_at_once_are_one",
        "test_what_is_no_raw_image_is_refused",
        "test_what_only_looks_raw_needs_an_explicit_word",
    ),
    "tests/faults/test_every_call_fails.py": ("test_a_volume_goes_on_after_running_out_of_space",),
    "tests/readers/test_owners.py": ("test_a_child_of_a_fork_takes_no_lock_along_when_it_ends",),
    "tests/readers/test_reading.py": (
        "test_a_damaged_node_is_an_error_for_a_reader_and_never_other_bytes",
        "test_a_reader_sees_each_snapshot_as_soon_as_it_was_taken_and_none_that_was_deleted",
        "test_a_snapshot_that_was_listed_and_then_deleted_is_not_found",
        "test_a_snapshot_whose_barrier_has_not_returned_is_not_believed",
        "test_two_holders_of_one_snapshot_let_go_one_after_the_other",
    ),
    "tests/regressions/test_growth.py": ("test_anchors_that_are_gone_are_not_remembered",),
    "tests/repair/test_repair_crashes.py": ("test_a_barrier_of_a_repair_that_fails_is_told_and_costs_nothing",),
    "tests/resize/test_resize.py": (
        "test_a_chain_of_backups_across_resizes_restores_every_version",
        "test_a_shrink_on_a_full_disk_works_or_changes_nothing",
        "test_a_size_that_cannot_be_is_refused",
        "test_growing_and_shrinking_over_a_level_of_the_map",
    ),
    "tests/security/test_paths.py": (
        "test_a_link_in_the_place_of_a_new_file_is_refused",
        "test_nothing_in_a_store_leads_out_of_it_or_is_waited_for[volumes-link]",
    ),
    "tests/size/test_many_snapshots.py": ("test_what_changed_survives_that_the_rest_is_dropped",),
    "tests/usage/test_usage.py": (
        "test_a_branch_point_gives_back_nothing_until_one_state_is_left_on_it",
        "test_a_damaged_map_is_an_error_and_no_number",
        "test_a_snapshot_that_goes_before_its_turn_counts_for_nothing",
        "test_a_walk_that_another_lineage_overtook_is_done_again",
        "test_an_answer_is_kept_until_a_neighbour_changes",
        "test_no_more_amounts_are_kept_than_there_is_room_for",
        "test_others_take_and_delete_snapshots_between_two_steps",
        "test_the_cost_follows_the_change_and_the_memory_is_bounded",
        "test_what_a_snapshot_says_is_what_its_delete_gives_back[0]",
        "test_what_is_gone_or_closed_says_so",
        "test_what_reclaim_has_yet_to_do_counts_as_done",
    ),
}
TESTS = (*FILES, *(f"{file}::{test}" for file, tests in ONLY.items() for test in tests))

# A test's own children count, forked or not: what an engine does in the child of a fork happens nowhere else.
CONFIG = """
[run]
branch = true
source = {parts}
data_file = {data}
parallel = true
patch = fork, subprocess, _exit
disable_warnings = module-not-imported, no-data-collected

[paths]
# A process without this search path finds the checkout, from which the other was installed: its lines are the same.
installed =
    {installed}
    */cowengine
"""
SUMMARY = re.compile(r"(?:FAILED|ERROR) (.*)")


def failed_in(pytest: Sequence[str], environment: Mapping[str, str] | None = None) -> list[str]:
    """Runs pytest from the root; the tests that failed, or what it said if none did and it ended badly."""
    run = subprocess.run(pytest, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    failed = SUMMARY.findall(run.stdout)
    if run.returncode and not failed:
        return [f"pytest ended with status {run.returncode}: {run.stdout[-1000:]}"]
    return failed


def installed() -> Path:
    """The package that is measured."""
    found = find_spec("cowengine")
    assert found is not None and found.origin is not None, "cowengine is not installed"
    return Path(found.origin).parent


def measure(tests: Sequence[str], parts: Sequence[str], folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Runs tests; which of them failed, and for each file of the parts what coverage.py has to say.

    Its data, of all processes together, is left in `folder / "data"`.
    """
    config, told = folder / "config", folder / "told.json"
    config.write_text(CONFIG.format(parts=",".join(parts), data=folder / "data", installed=installed()))

    def coverage(command: str, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "coverage", command, f"--rcfile={config}", *arguments]

    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'tests'}", *tests]
    failed = failed_in(coverage("run", *pytest))
    subprocess.run(coverage("combine", "-q"), cwd=ROOT, check=True)
    subprocess.run(coverage("json", "-q", "-o", str(told)), cwd=ROOT, check=True)
    return failed, json.loads(told.read_text())["files"]


def add(tally: Tally, name: str, file: dict[str, Any]) -> None:
    """Counts what was taken of one file, and tells what was not."""
    name = name[name.rindex("cowengine/") :]
    tally.count += file["summary"]["covered_branches"]
    for start, end in file["missing_branches"]:
        tally.violation(f"{name}:{start}: never goes to {f'line {end}' if end > 0 else 'its end'}")
    for line in sorted(set(file["missing_lines"]) - {end for _, end in file["missing_branches"]}):
        tally.violation(f"{name}:{line}: never reached")


def main() -> int:
    parser = harness_parser("Counts the branches that the tests take, and names those that they do not.", 0)
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="TEST", help="folders and files for pytest")
    parser.add_argument("--parts", nargs="+", default=PARTS, metavar="MODULE", help="what is measured")
    arguments = parser.parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        failed, files = measure(arguments.tests, arguments.parts, Path(folder))
    for test in failed:
        tally.violation(f"failed: {test}")
    for name, file in files.items():
        add(tally, name, file)
    return tell(tally, arguments, "branches taken", shown=len(tally.violations))


if __name__ == "__main__":
    sys.exit(main())
