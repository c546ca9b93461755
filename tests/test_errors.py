from igc_nas import errors
from igc_nas.errors import (
    CaptureError,
    ConfigError,
    DataError,
    DivergedError,
    IgcNasError,
    InfeasibleError,
    StudyError,
    UsageError,
)

EXIT_CODES = {
    IgcNasError: 1,
    CaptureError: 1,
    DivergedError: 1,
    UsageError: 2,
    ConfigError: 2,
    InfeasibleError: 3,
    StudyError: 4,
    DataError: 5,
}


def test_exit_codes_of_every_error() -> None:
    named = {e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)}
    assert {error: error.exit_code for error in named} == EXIT_CODES


def test_a_bad_file_is_a_usage_error_and_other_kinds_are_apart() -> None:
    assert issubclass(ConfigError, UsageError)
    for one in (UsageError, InfeasibleError, StudyError, DataError):
        assert one.__base__ is IgcNasError


def test_an_error_prints_its_message_and_its_hint() -> None:
    assert str(StudyError("no study 'a'")) == "no study 'a'"
    assert str(StudyError("no study 'a'", "did you mean b?")) == "no study 'a'\ndid you mean b?"
