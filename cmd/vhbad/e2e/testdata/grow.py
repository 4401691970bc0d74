# Run by nbdsh with h connected, base:allocation agreed on, and grow, the command
# that makes the disk twice as large: what a client sees that was there before.
import subprocess

old = h.get_size()
new = 2 * old
block = b"x" * 4096


def extents(handle, length, offset):
    found = []
    handle.block_status(length, offset, lambda context, at, entries, error: found.extend(entries))
    return list(zip(found[0::2], found[1::2]))


def refused(call):
    try:
        call()
    except nbd.Error:
        return
    raise AssertionError("succeeded beyond the end")


h.set_strict_mode(0)  # it may send what goes beyond the size that it knows
refused(lambda: extents(h, 4096, old))
refused(lambda: h.pwrite(block, new - 4096))

subprocess.run(grow, check=True)

hole = nbd.STATE_HOLE | nbd.STATE_ZERO
assert extents(h, old, old) == [(old, hole)], "the new part is a hole"
h.pwrite(block, new - 4096)
assert extents(h, old, old) == [(old - 4096, hole), (4096, 0)], "a hole and what was written"
assert h.pread(4096, new - 4096) == block, "read after write"
refused(lambda: extents(h, 8192, new - 4096))

fresh = nbd.NBD()
fresh.connect_uri(h.get_uri())
assert fresh.get_size() == new, "a new client is told %d" % fresh.get_size()
fresh.shutdown()
