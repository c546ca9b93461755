"""What must not go wrong, and which tests keep it. A test that is renamed is missed here."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

PROMISES: dict[str, tuple[str, ...]] = {
    "1 no finished result is lost": (
        "test_faults::test_killed_coordinators_lose_nothing_and_leave_nobody",
        "test_faults::test_two_hundred_killed_coordinators_lose_nothing_and_leave_nobody",
        "test_disk::test_a_full_disk_is_one_error_and_the_same_command_continues",
        "test_disk::test_a_file_that_may_not_grow_is_one_error",
        "test_disk::test_a_torn_last_line_is_nobodys",
        "test_disk::test_of_two_that_differ_in_length_the_longer_counts",
        "test_disk::test_a_database_with_a_flipped_bit_is_opened_or_refused",
        "test_disk::test_a_result_that_the_database_and_the_evidence_tell_differently_is_refused",
    ),
    "2 no orphan": (
        "test_faults::test_killed_coordinators_lose_nothing_and_leave_nobody",
        "test_faults::test_killed_workers_cost_a_trial_each",
        "test_faults::test_a_signal_ends_a_search",
        "test_disk::test_a_trial_that_nothing_says_the_end_of_is_taken_up",
        "test_owner::test_a_process_is_told_from_every_other",
        "test_owner::test_what_a_dead_owner_said_does_not_keep_a_study",
    ),
    "3 resume is exact when sequential": (
        "test_faults::test_a_search_that_is_stopped_in_every_trial_ends_as_if_it_was_not",
        "test_faults::test_a_search_that_is_stopped_at_any_of_twelve_trials_has_the_same_front",
        "test_faults::test_a_search_of_one_worker_that_is_killed_ends_with_the_same_front",
        "test_faults::test_a_real_search_that_is_killed_in_a_training_ends_with_the_same_front",
        "test_disk::test_what_a_sampler_notes_is_in_the_evidence_too",
        "test_study::test_a_search_with_stops_goes_on_as_if_it_was_not_interrupted",
    ),
    "4 refuse, don't guess": (
        "test_cli::test_another_question_is_refused_with_the_difference",
        "test_workers::test_another_dataset_than_the_studys_is_refused",
        "test_workers::test_another_device_than_the_studys_is_refused",
        "test_disk::test_the_database_of_another_study_is_not_taken",
    ),
    "5 a bad trial never ends a search": (
        "test_faults::test_a_fault_costs_its_trial_and_is_recorded",
        "test_faults::test_the_same_failure_again_and_again_ends_a_search",
        "test_faults::test_what_a_trial_leaves_behind_does_not_disturb_the_next",
        "test_faults::test_waiting_for_others_is_not_a_trials_time",
    ),
    "6 a latency is honest": (
        "test_machine::*",
        "test_latency::*",
        "test_room::test_nobody_works_while_one_measures",
        "test_room::test_a_killed_measurer_leaves_the_room",
    ),
    "7 files are whole": (
        "test_files::test_a_failure_leaves_the_old_file_and_nothing_else",
        "test_disk::test_a_full_disk_is_one_error_and_the_same_command_continues",
    ),
    "8 data are verified or not used": ("test_dataset::*", "test_fetch::*"),
    "9 nothing that is loaded runs code": (
        "test_cli::test_a_secret_in_a_storage_address_is_not_repeated",
        "test_cli::test_a_hostile_file_cannot_write_on_the_terminal",
        "test_remote::*",
        "test_longrun::*",
    ),
    "10 nothing listens unless asked": ("test_cli::test_a_dashboard_is_one_page", "test_plots::*"),
    "11 an error is one line and a hint": (
        "test_cli::test_wrong_input_is_one_error_with_its_status",
        "test_cli::test_debug_shows_where_an_error_came_from",
        "test_disk::test_a_full_disk_is_one_error_and_the_same_command_continues",
        "test_disk::test_the_first_error_is_the_one_that_is_told",
        "test_faults::test_a_signal_while_a_search_starts_ends_it",
    ),
    "12 old studies open": (
        "test_disk::test_a_study_that_an_older_release_has_written_opens_and_goes_on",
        "test_disk::test_a_trial_under_way_of_an_older_release_is_taken_up",
        "test_disk::test_a_study_of_a_newer_release_is_refused_with_what_to_install",
        "test_spec::test_a_newer_schema_is_refused_with_what_to_install",
    ),
}


def names_in(module: str) -> set[str]:
    """The names of a file's tests, read and not run."""
    tree = ast.parse((TESTS / f"{module}.py").read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_there_are_twelve_promises() -> None:
    assert [int(promise.split()[0]) for promise in PROMISES] == list(range(1, 13))


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_is_kept_by_tests_that_are_there(promise: str) -> None:
    assert PROMISES[promise]
    for name in PROMISES[promise]:
        module, _, test = name.partition("::")
        there = names_in(module)
        assert there if test == "*" else test in there, name
