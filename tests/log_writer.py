"""A process that writes to a log, for tests: `log_writer.py PATH PRODUCER FIRST COUNT [holding]`.

Its transactions are numbered; number i appends a row of i % 5 + 1 records to every partition and commits i. It waits for a
line on its input, then says each number on its output once it is durable. With `holding` it keeps the first one open instead.
"""

import sys
import time
from functools import cache

from log_bodies import ticks

from connectors.log import NewRow
from connectors.log.sqlite import open_log


@cache
def transaction(number: int, partitions: int) -> list[NewRow]:
    count = number % 5 + 1
    return [NewRow(partition, number, count, ticks(number * 10, count)) for partition in range(partitions)]


def main(path: str, producer: str, first: int, count: int, *, holding: bool) -> None:
    log = open_log(path)
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(first, first + count):
        with log.writing() as turn:
            turn.append(producer, transaction(number, log.partitions))
            turn.commit(producer, {"number": number})
            if holding:
                print("holding", flush=True)
                time.sleep(60)
        print(number, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), holding=sys.argv[5:] == ["holding"])
