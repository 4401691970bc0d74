# Run by nbdsh with h connected: every command, and requests that a client should
# not send, each with the error that the protocol wants. The connection must live
# through all of it.
import os

size = h.get_size()
block = os.urandom(4096)


def refused(what, want, call):
    try:
        call()
    except nbd.Error as e:
        if e.errno not in want:
            raise AssertionError("%s: got %s, want one of %s" % (what, e.errno, want))
        return
    raise AssertionError("%s: succeeded, want one of %s" % (what, want))


# Every command, and what it leaves.
h.pwrite(block, 0)
assert h.pread(4096, 0) == block, "read after write"
h.pwrite(block, 8192, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 8192) == block, "read after write with FUA"
h.zero(4096, 0)
assert h.pread(4096, 0) == bytes(4096), "read after zero"
h.pwrite(block, 0)
h.zero(4096, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread(4096, 0) == bytes(4096), "read after zero without a hole"
h.trim(4096, 8192, nbd.CMD_FLAG_FUA)
h.pread(4096, 8192)
if h.can_cache():
    h.cache(65536, 0)
h.flush()

# A read that is aligned to nothing, as old clients send; and the last byte.
if h.get_block_size(nbd.SIZE_MINIMUM) <= 1:
    odd = os.urandom((1 << 20) + 14)
    h.pwrite(odd, 1)
    assert h.pread(len(odd), 1) == odd, "unaligned read after unaligned write"
    h.pwrite(b"\x5a", size - 1)
    assert h.pread(1, size - 1) == b"\x5a", "last byte"

# Many at once, answered in any order.
want = {}
handles = []
for i in range(64):
    buf = nbd.Buffer.from_bytearray(bytearray([i]) * 4096)
    handles.append(h.aio_pwrite(buf, (1 << 21) + i * 4096))
while handles:
    handles = [c for c in handles if not h.aio_command_completed(c)]
    if handles:
        h.poll(-1)
for i in range(64):
    assert h.pread(4096, (1 << 21) + i * 4096) == bytes([i]) * 4096, "block %d of a batch" % i

# What the library would not let through.
h.set_strict_mode(0)
refused("read beyond the end", ["EINVAL"], lambda: h.pread(4096, size))
refused("read across the end", ["EINVAL"], lambda: h.pread(8192, size - 4096))
refused("write beyond the end", ["ENOSPC", "EINVAL"], lambda: h.pwrite(block, size))
refused("write across the end", ["ENOSPC", "EINVAL"], lambda: h.pwrite(block * 2, size - 4096))
refused("trim across the end", ["EINVAL", "ENOSPC"], lambda: h.trim(8192, size - 4096))
refused("zero across the end", ["ENOSPC", "EINVAL"], lambda: h.zero(8192, size - 4096))
refused("read at an offset that overflows", ["EINVAL"], lambda: h.pread(4096, (1 << 63) - 512))
refused("flags that no command has", ["EINVAL"], lambda: h.pread(4096, 0, 1 << 12))
refused("a flag that is another command's", ["EINVAL"], lambda: h.pwrite(block, 0, nbd.CMD_FLAG_NO_HOLE))
refused("block status, not negotiated", ["EINVAL"], lambda: h.block_status(4096, 0, lambda *args: 0))

# After all of that, the connection still works and nothing was written beyond.
h.pwrite(block, size - 4096)
assert h.pread(4096, size - 4096) == block, "read after refusals"
h.shutdown()
