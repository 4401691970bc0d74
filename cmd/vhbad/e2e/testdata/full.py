# Run by nbdsh against a disk that is larger than the file system it lies on.

chunk = b"\xa5" * (1 << 20)
written = 0
while written < h.get_size():
    try:
        h.pwrite(chunk, written)
    except nbd.Error as e:
        assert e.errno == "ENOSPC", "got %s, want ENOSPC" % e.errno
        break
    written += len(chunk)
else:
    raise AssertionError("the disk never got full")
assert written > 0, "nothing could be written"

# The kernel tells a lost write once, so a server may have to say it to a flush as well.
try:
    h.flush()
except nbd.Error as e:
    assert e.errno == "ENOSPC", "flush: got %s, want ENOSPC" % e.errno
h.flush()

# What was acknowledged is there, and room that is given back can be used.
for offset in range(0, written, len(chunk)):
    assert h.pread(len(chunk), offset) == chunk, "byte %d was lost" % offset
h.trim(len(chunk), 0)
h.pwrite(chunk, h.get_size() - len(chunk), nbd.CMD_FLAG_FUA)
h.flush()
h.shutdown()
