"""The one table between errors and gRPC's codes."""

from __future__ import annotations

import grpc
import pytest

from reward_server import errors


@pytest.mark.parametrize("row", errors.TABLE)
def test_an_error_travels_as_its_code_and_comes_back_as_itself(row: errors.Row) -> None:
    assert type(errors.error_of(row.code, "m")) is row.error


def test_the_most_specific_row_gives_the_code() -> None:
    assert errors.code_of(errors.GroupTooLargeError("m")) is grpc.StatusCode.OUT_OF_RANGE
    assert errors.code_of(errors.InvalidGroupError("m")) is grpc.StatusCode.INVALID_ARGUMENT


def test_only_a_full_and_an_absent_server_are_retried() -> None:
    assert errors.retryable_codes() == ["RESOURCE_EXHAUSTED", "UNAVAILABLE"]


def test_every_error_is_the_standard_kind_that_it_refines() -> None:
    assert issubclass(errors.DeadlineError, TimeoutError)
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.UnavailableError, ConnectionError)


def test_a_code_outside_the_table_keeps_its_name() -> None:
    error = errors.error_of(grpc.StatusCode.DATA_LOSS, "m")
    assert isinstance(error, errors.CallError)
    assert error.code is grpc.StatusCode.DATA_LOSS
