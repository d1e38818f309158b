"""What every engine of the log promises, by the words of connectors/log/__init__.py.

An engine is put under these tests by a subclass whose name begins with Test, and which has a fixture `engine`: an object whose
`create(partitions)` makes an empty log and opens it, and whose `open()` opens it once more, as another process would.
"""

from contextlib import closing, suppress

import pytest
from log_bodies import payments, readings, row, ticks

from connectors.log import DivergedError, NewRow

PARTITIONS = 3


class LogConformance:
    @pytest.fixture
    def log(self, engine):
        with closing(engine.create(PARTITIONS)) as log:
            yield log

    def test_a_new_log_is_empty(self, log):
        assert log.partitions == PARTITIONS
        assert [log.end(p) for p in range(PARTITIONS)] == [0, 0, 0]
        assert log.read(0, 0) == []
        assert log.last(0, "a") is None
        assert log.committed("c") == {}

    def test_positions_count_records_within_their_partition(self, log):
        assert log.append("a", [row(0, 0, 3), row(1, 0, 2), row(0, 1, 1), row(0, 2, 4)]) == [0, 0, 3, 4]
        assert [log.end(p) for p in range(PARTITIONS)] == [8, 2, 0]
        assert [(r.position, r.count, r.end) for r in log.read(0, 0)] == [(0, 3, 3), (3, 1, 4), (4, 4, 8)]

    def test_what_is_read_is_what_was_written(self, log):
        new = row(2, 7, 5)
        log.append("a", [new])
        (read,) = log.read(2, 0)
        assert (read.partition, read.position, read.count) == (2, 0, 5)
        assert (read.producer, read.sequence, read.body) == ("a", 7, new.body)

    def test_reading_begins_with_the_row_that_holds_the_position(self, log):
        log.append("a", [row(0, s, 3) for s in range(4)])
        assert [[r.position for r in log.read(0, at)] for at in (0, 2, 3, 8, 11, 12, 99)] == [
            [0, 3, 6, 9],
            [0, 3, 6, 9],
            [3, 6, 9],
            [6, 9],
            [9],
            [],
            [],
        ]

    def test_reading_stops_at_its_limits_but_gives_one_row(self, log):
        log.append("a", [row(0, s) for s in range(10)])
        size = len(log.read(0, 0)[0].body)
        assert len(log.read(0, 0, max_rows=4)) == 4
        assert len(log.read(0, 0, max_bytes=3 * size)) == 3
        assert len(log.read(0, 0, max_bytes=1)) == 1

    def test_another_process_sees_what_was_appended(self, log, engine):
        with closing(engine.open()) as other:
            assert other.end(0) == 0
            log.append("a", [row(0, 0, 3)], {"c": {"0": 5}})
            assert other.end(0) == 3
            assert [r.count for r in other.read(0, 0)] == [3]
            assert other.last(0, "a") == 0
            assert other.committed("c") == {"0": 5}

    def test_the_last_sequence_is_kept_for_each_producer_and_partition(self, log):
        log.append("a", [row(0, 4), row(1, 9)])
        log.append("b", [row(0, 2)])
        assert [log.last(0, "a"), log.last(1, "a"), log.last(0, "b"), log.last(1, "b")] == [4, 9, 2, None]

    def test_appending_twice_is_a_no_op(self, log):
        rows = [row(0, 0, 3), row(1, 0, 1), row(0, 5, 2)]
        assert log.append("a", rows) == [0, 0, 3]
        assert log.append("a", [*rows, row(0, 6)]) == [0, 0, 3, 5]
        assert [log.end(p) for p in range(PARTITIONS)] == [6, 1, 0]

    def test_appending_twice_within_one_transaction_is_a_no_op(self, log):
        assert log.append("a", [row(0, 0, 3), row(0, 0, 3)]) == [0, 0]
        assert log.end(0) == 3

    def test_the_same_sequence_of_another_producer_is_another_row(self, log):
        assert [log.append(name, [row(0, 0)]) for name in "ab"] == [[0], [1]]

    def test_the_same_records_encoded_otherwise_are_the_same(self, log):
        channels = ["Click", "Payme"] * 10
        one, other = (payments(channels, names) for names in (["Click", "Payme"], ["Payme", "Click"]))
        assert one != other
        assert log.append("a", [NewRow(0, 0, 20, one)]) == log.append("a", [NewRow(0, 0, 20, other)]) == [0]
        assert log.read(0, 0)[0].body == one

    @pytest.mark.parametrize(
        "different",
        [
            NewRow(0, 1, 2, ticks(1001, 2)),
            NewRow(0, 1, 3, ticks(1000, 3)),
            NewRow(0, 1, 2, readings(["a", "b"])),
            NewRow(0, 1, 2, b"no body"),
        ],
        ids=["other values", "one more", "another kind", "no body"],
    )
    def test_other_records_under_a_used_sequence_are_refused_and_nothing_stays(self, log, different):
        log.append("a", [row(0, 0), row(0, 1, 2)], {"c": {"0": 1}})
        with pytest.raises(DivergedError):
            log.append("a", [row(1, 0), different], {"c": {"0": 2}})
        assert [log.end(p) for p in range(PARTITIONS)] == [3, 0, 0]
        assert log.committed("c") == {"0": 1}

    def test_a_row_under_a_sequence_that_was_passed_over_is_refused(self, log):
        log.append("a", [row(0, 0), row(0, 5)])
        with pytest.raises(DivergedError):
            log.append("a", [row(0, 3)])
        assert log.end(0) == 2

    def test_a_commit_keeps_whole_numbers_by_key(self, log):
        log.commit("c", {"0": 5, "1": 6, "a name": 1 << 62})
        log.commit("c", {"1": 7})
        log.commit("other", {"0": 1})
        assert log.committed("c") == {"0": 5, "1": 7, "a name": 1 << 62}
        assert log.committed("other") == {"0": 1}

    def test_rows_and_commits_of_a_transaction_stay_together_or_not_at_all(self, log):
        with suppress(RuntimeError), log.writing() as transaction:
            transaction.append("a", [row(0, 0), row(1, 0)])
            transaction.commit("c", {"0": 1})
            raise RuntimeError
        assert [log.end(p) for p in range(PARTITIONS)] == [0, 0, 0]
        assert log.committed("c") == {}
        assert log.append("a", [row(0, 0), row(1, 0)], {"c": {"0": 1}}) == [0, 0]

    def test_a_transaction_sees_its_own_writes_and_readers_only_what_is_done(self, log):
        with log.writing() as transaction:
            transaction.append("a", [row(0, 3, 2)])
            transaction.commit("c", {"0": 1})
            assert (transaction.end(0), transaction.last(0, "a"), transaction.committed("c")) == (2, 3, {"0": 1})
            assert (log.end(0), log.last(0, "a"), log.committed("c"), log.read(0, 0)) == (0, None, {}, [])
        assert (log.end(0), log.last(0, "a"), log.committed("c")) == (2, 3, {"0": 1})

    def test_an_empty_append_is_nothing(self, log):
        assert log.append("a", []) == []
        assert log.append("a", [], {"c": {"0": 3}}) == []
        assert log.committed("c") == {"0": 3}

    def test_a_partition_that_is_not_there_is_an_error(self, log):
        for wrong in (-1, PARTITIONS):
            with pytest.raises(ValueError, match="partition"):
                log.read(wrong, 0)
            with pytest.raises(ValueError, match="partition"):
                log.append("a", [row(wrong, 0)])

    def test_a_row_without_records_is_an_error(self, log):
        with pytest.raises(ValueError, match="at least one record"):
            log.append("a", [NewRow(0, 0, 0, b"")])
