# Run by nbdsh against a read-only disk.

assert h.is_read_only(), "the export does not say that it is read-only"
h.pread(4096, 0)
h.set_strict_mode(0)
for what, call in (
    ("write", lambda: h.pwrite(bytes(4096), 0)),
    ("trim", lambda: h.trim(4096, 0)),
    ("zero", lambda: h.zero(4096, 0)),
):
    try:
        call()
    except nbd.Error as e:
        assert e.errno == "EPERM", "%s: got %s, want EPERM" % (what, e.errno)
    else:
        raise AssertionError("%s succeeded" % what)
h.pread(4096, 0)
h.shutdown()
