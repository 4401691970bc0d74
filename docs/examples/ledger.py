#!/usr/bin/python3
"""A ledger on a disk, with a bug for docs/tutorial-power-cut.md to find.

Block 0 says how many entries there are, block N is entry N.

    ledger.py [--flush] add TEXT...     prints "committed N" for each
    ledger.py check N                   wants N entries, all whole
    ledger.py format

LEDGER is the NBD URI of the disk. Without --flush the ledger says "committed"
when the disk has the entry in its cache. That is the bug.
"""

import os
import sys

import nbd

BLOCK = 512


def block(text):
    return text.encode().ljust(BLOCK, b"\0")


def read(disk, number):
    return disk.pread(BLOCK, number * BLOCK).rstrip(b"\0").decode()


def main(arguments):
    flush = arguments[:1] == ["--flush"]
    if flush:
        arguments = arguments[1:]
    disk = nbd.NBD()
    disk.connect_uri(os.environ["LEDGER"])
    command = arguments[0] if arguments else ""
    if command == "format":
        disk.pwrite(block("entries 0"), 0)
        disk.flush()
        return 0
    count = int((read(disk, 0) or "entries 0").split()[1])
    if command == "add":
        for text in arguments[1:]:
            count += 1
            disk.pwrite(block(f"entry {count}: {text}"), count * BLOCK)
            if flush:
                disk.flush()  # the entry, before anything says that it is there
            disk.pwrite(block(f"entries {count}"), 0)
            if flush:
                disk.flush()  # the count, before we say so
            print("committed", count)
        return 0
    if command == "check":
        wrong = []
        if count < int(arguments[1]):
            wrong.append(f"{arguments[1]} entries were committed, the ledger has {count}")
        for number in range(1, count + 1):
            if not read(disk, number).startswith(f"entry {number}: "):
                wrong.append(f"entry {number} is not there")
        print("\n".join(wrong) or f"{count} entries, all there")
        return 1 if wrong else 0
    print(__doc__, file=sys.stderr)
    return 2


sys.exit(main(sys.argv[1:]))
