package conformance

import (
	"encoding/binary"
	"strings"
)

const allocation = "base:allocation"

// metaWire is ready for the meta context options.
func metaWire(x *probe) *wire {
	w := x.haggle()
	w.upgrade(structured)
	return w
}

// metaAnswer asks an option that must be ACKed, and returns the contexts.
func metaAnswer(x *probe, w *wire, id uint32, queries ...string) []metaContext {
	return w.contexts(w.wantFinal(id, metaData(x.target.Export, queries...), repAck))
}

func names(cs []metaContext) string {
	var s []string
	for _, c := range cs {
		s = append(s, c.name)
	}
	return strings.Join(s, " ")
}

// allocations counts base:allocation among the contexts.
func allocations(cs []metaContext) (n int) {
	for _, c := range cs {
		if c.name == allocation {
			n++
		}
	}
	return n
}

func metaRows() []Row {
	rows := []Row{
		{
			Name: "meta/list-all", Level: Must,
			Rule: "without queries every context that can be selected is listed, once",
			check: func(x *probe) {
				if n := allocations(metaAnswer(x, metaWire(x), optListMeta)); n != 1 {
					x.failf("base:allocation is listed %d times", n)
				}
			},
		},
		{
			Name: "meta/list-name", Level: Must,
			Rule: "a query for a whole name lists that context and no other",
			check: func(x *probe) {
				if cs := metaAnswer(x, metaWire(x), optListMeta, allocation); len(cs) != 1 || cs[0].name != allocation {
					x.failf("listed: %s", names(cs))
				}
			},
		},
		{
			Name: "meta/list-wildcard", Level: Must,
			Rule: "the query base: lists all contexts of the namespace",
			check: func(x *probe) {
				if cs := metaAnswer(x, metaWire(x), optListMeta, "base:"); allocations(cs) != 1 {
					x.failf("listed: %s", names(cs))
				}
			},
		},
		{
			Name: "meta/list-foreign", Level: Must,
			Rule: "queries in namespaces that the server does not know are ignored: an ACK and no context",
			check: func(x *probe) {
				w := metaWire(x)
				if cs := metaAnswer(x, w, optListMeta, "x-vhbad-test:anything"); len(cs) != 0 {
					x.failf("listed: %s", names(cs))
				}
				if cs := metaAnswer(x, w, optListMeta, "x-vhbad-test:", allocation); len(cs) != 1 || cs[0].name != allocation {
					x.failf("listed beside an unknown namespace: %s", names(cs))
				}
			},
		},
		{
			Name: "meta/list-unknown-leaf", Level: Must,
			Rule: "a name that does not exist in a known namespace matches nothing, and is no error",
			check: func(x *probe) {
				w := metaWire(x)
				for _, q := range []string{"base:alloc", "base:allocation2", "base:x"} {
					if cs := metaAnswer(x, w, optListMeta, q); len(cs) != 0 {
						x.failf("%q lists %s", q, names(cs))
					}
				}
			},
		},
		{
			Name: "meta/set-unknown-leaf", Level: Must,
			Rule: "a query for an unknown leaf of a known namespace selects nothing, and is no error",
			check: func(x *probe) {
				w := metaWire(x)
				if cs := metaAnswer(x, w, optSetMeta, "base:x"); len(cs) != 0 {
					x.failf("selected: %s", names(cs))
				}
				if cs := metaAnswer(x, w, optSetMeta, "base:x", allocation); len(cs) != 1 || cs[0].name != allocation {
					x.failf("selected beside an unknown leaf: %s", names(cs))
				}
			},
		},
		{
			Name: "meta/names", Level: Must,
			Rule: "the names of contexts are strings of a namespace that is defined, a colon, and a leaf",
			check: func(x *probe) {
				w := metaWire(x)
				for _, c := range append(metaAnswer(x, w, optListMeta), metaAnswer(x, w, optSetMeta, allocation)...) {
					w.checkString("the name of a context", []byte(c.name))
					space, _, ok := strings.Cut(c.name, ":")
					switch {
					case !ok:
						x.failf("context %q has no namespace", c.name)
					case space != "base" && space != "nbd-server" && space != "qemu" && !strings.HasPrefix(space, "x-"):
						x.failf("context %q is of a namespace that nobody has registered", c.name)
					}
				}
			},
		},
		{
			Name: "meta/set-wildcard-any", Level: Should,
			Rule: "an empty leaf selects nothing in any namespace",
			check: func(x *probe) {
				w := metaWire(x)
				for _, c := range metaAnswer(x, w, optListMeta) {
					space, _, _ := strings.Cut(c.name, ":")
					if cs := metaAnswer(x, w, optSetMeta, space+":"); len(cs) != 0 {
						x.failf("%q selected %s", space+":", names(cs))
					}
				}
			},
		},
		{
			Name: "meta/list-id-zero", Level: Should,
			Rule: "the ids in a list mean nothing and are zero",
			check: func(x *probe) {
				for _, c := range metaAnswer(x, metaWire(x), optListMeta) {
					if c.id != 0 {
						x.failf("%s is listed with id %d", c.name, c.id)
					}
				}
			},
		},
		{
			Name: "meta/list-selects-nothing", Level: Must,
			Rule: "listing selects nothing",
			check: func(x *probe) {
				w := metaWire(x)
				metaAnswer(x, w, optListMeta, allocation)
				w.enter(x.target.Export)
				wantNoStatus(w)
			},
		},
		{
			Name: "meta/list-repeats", Level: Should,
			Rule: "a context that several queries match is listed once",
			check: func(x *probe) {
				if cs := metaAnswer(x, metaWire(x), optListMeta, allocation, "base:", allocation); allocations(cs) != 1 {
					x.failf("listed: %s", names(cs))
				}
			},
		},
		{
			Name: "meta/set-name", Level: Must,
			Rule: "a query for a whole name selects that context, with its name in the reply",
			check: func(x *probe) {
				w := metaWire(x)
				w.setAllocation(x.target.Export)
				w.enter(x.target.Export)
				w.ok(request{typ: cmdBlockStatus, length: x.f.block()})
			},
		},
		{
			Name: "meta/set-wildcard", Level: Must,
			Rule: "the query base: selects nothing",
			check: func(x *probe) {
				if cs := metaAnswer(x, metaWire(x), optSetMeta, "base:"); len(cs) != 0 {
					x.failf("selected: %s", names(cs))
				}
			},
		},
		{
			Name: "meta/set-none", Level: Must,
			Rule: "without queries nothing is selected",
			check: func(x *probe) {
				w := metaWire(x)
				if cs := metaAnswer(x, w, optSetMeta); len(cs) != 0 {
					x.failf("selected: %s", names(cs))
				}
				w.enter(x.target.Export)
				wantNoStatus(w)
			},
		},
		{
			Name: "meta/set-foreign", Level: Must,
			Rule: "queries in unknown namespaces are as if they were not there",
			check: func(x *probe) {
				w := metaWire(x)
				if cs := metaAnswer(x, w, optSetMeta, "x-vhbad-test:anything"); len(cs) != 0 {
					x.failf("selected: %s", names(cs))
				}
				if cs := metaAnswer(x, w, optSetMeta, "x-vhbad-test:anything", allocation, "x-vhbad-test:"); len(cs) != 1 || cs[0].name != allocation {
					x.failf("selected beside unknown namespaces: %s", names(cs))
				}
			},
		},
		{
			Name: "meta/set-unique", Level: Must,
			Rule: "each context has an id of its own, and is selected once however often it is asked for",
			check: func(x *probe) {
				cs := metaAnswer(x, metaWire(x), optSetMeta, allocation, allocation, allocation)
				if allocations(cs) != 1 || len(cs) != 1 {
					x.failf("selected: %s", names(cs))
				}
			},
		},
		{
			Name: "meta/set-replaces", Level: Must,
			Rule: "a second SET_META_CONTEXT replaces the first",
			check: func(x *probe) {
				w := metaWire(x)
				w.setAllocation(x.target.Export)
				metaAnswer(x, w, optSetMeta, "x-vhbad-test:anything")
				w.enter(x.target.Export)
				wantNoStatus(w)
			},
		},
		{
			Name: "meta/set-fails-replaces", Level: Must,
			Rule: "a SET_META_CONTEXT that fails replaces the one before it, too: nothing is selected",
			check: func(x *probe) {
				w := metaWire(x)
				w.setAllocation(x.target.Export)
				if _, last := w.ask(optSetMeta, []byte{0, 0}); !last.isError() {
					x.failf("a malformed SET_META_CONTEXT was answered by %v", last)
				}
				w.enter(x.target.Export)
				wantNoStatus(w)
			},
		},
		{
			Name: "meta/set-bound", Level: Must,
			Rule:  "a selection is for the export that it names, and is void in another",
			needs: all(needInfo, need("two exports", func(f *features) bool { return f.hasOther })),
			check: func(x *probe) {
				w := metaWire(x)
				if _, last := w.ask(optSetMeta, metaData(x.f.otherName, allocation)); last.isError() {
					x.notApplicable("SET_META_CONTEXT for %q: %v", x.f.otherName, last)
				}
				w.enter(x.target.Export)
				wantNoStatus(w)
			},
		},
		{
			Name: "meta/unknown-export", Level: Must,
			Rule:  "an export that does not exist gets an error: NBD_REP_ERR_UNKNOWN",
			needs: needNamed,
			check: func(x *probe) {
				w := metaWire(x)
				w.wantError(optListMeta, metaData(noSuchExport), repUnknown)
				w.wantError(optSetMeta, metaData(noSuchExport, allocation), repUnknown)
			},
		},
		{
			Name: "meta/set-needs-structured", Level: Should,
			Rule: "SET_META_CONTEXT before structured replies gets NBD_REP_ERR_INVALID",
			check: func(x *probe) {
				x.haggle().wantError(optSetMeta, metaData(x.target.Export, allocation), repInvalid)
			},
		},
		{
			Name: "meta/list-before-structured", Level: Must,
			Rule: "LIST_META_CONTEXT before structured replies is answered, by a list or NBD_REP_ERR_INVALID",
			check: func(x *probe) {
				w := x.haggle()
				if _, last := w.ask(optListMeta, metaData(x.target.Export)); last.isError() && last.typ != repInvalid {
					x.failf("answered by %v", last)
				}
				w.inStep()
			},
		},
		{
			Name: "meta/many-queries", Level: Should,
			Rule: "a thousand queries get an answer or NBD_REP_ERR_TOO_BIG, and the next option is heard",
			check: func(x *probe) {
				w := metaWire(x)
				many := make([]string, 1000)
				for i := range many {
					many[i] = "x-vhbad-test:" + strings.Repeat("q", i%40)
				}
				if _, last := w.ask(optListMeta, metaData(x.target.Export, many...)); last.isError() && last.typ != repTooBig && last.typ != repInvalid {
					x.failf("answered by %v", last)
				}
				w.inStep()
			},
		},
		{
			Name: "meta/query-4097", Level: Should,
			Rule: "a query is a string of at most 4096 bytes: a longer one is refused",
			check: func(x *probe) {
				metaWire(x).wantRefused(optListMeta, metaData(x.target.Export, "base:"+strings.Repeat("q", maxStringBytes)))
			},
		},
		malformedMeta(Must, "meta/no-data", "no data at all gets an error", func(*probe) []byte { return nil }),
		malformedMeta(Must, "meta/no-queries", "data that ends before the number of queries gets an error", func(x *probe) []byte {
			d := metaData(x.target.Export)
			return d[:len(d)-2]
		}),
		malformedMeta(Must, "meta/name-overrun", "a name that is longer than the data gets an error", func(x *probe) []byte {
			d := metaData(x.target.Export, allocation)
			binary.BigEndian.PutUint32(d, 1000)
			return d
		}),
		malformedMeta(Must, "meta/count-overrun", "more queries than the data has get an error", func(x *probe) []byte {
			d := metaData(x.target.Export, allocation)
			binary.BigEndian.PutUint32(d[4+len(x.target.Export):], 2)
			return d
		}),
		malformedMeta(Must, "meta/count-4-GiB", "2^32-1 queries in a short option get an error, not the memory for them", func(x *probe) []byte {
			d := metaData(x.target.Export, allocation)
			binary.BigEndian.PutUint32(d[4+len(x.target.Export):], 1<<32-1)
			return d
		}),
		malformedMeta(Must, "meta/query-overrun", "a query that is longer than the data gets an error", func(x *probe) []byte {
			d := metaData(x.target.Export, allocation)
			binary.BigEndian.PutUint32(d[8+len(x.target.Export):], uint32(len(allocation)+1))
			return d
		}),
		malformedMeta(Should, "meta/trailing-data", "data behind the last query gets an error", func(x *probe) []byte {
			return append(metaData(x.target.Export, allocation), 0)
		}),
	}
	for i := range rows {
		if rows[i].needs == nil {
			rows[i].needs = needAllocation
		} else {
			rows[i].needs = all(needAllocation, rows[i].needs)
		}
	}
	return rows
}

func malformedMeta(level Level, name, rule string, data func(x *probe) []byte) Row {
	return Row{
		Name: name, Level: level, Rule: rule + " (NBD_REP_ERR_INVALID), and the next option is heard",
		check: func(x *probe) {
			w := metaWire(x)
			w.wantError(optListMeta, data(x), repInvalid, repTooBig)
			w.wantError(optSetMeta, data(x), repInvalid, repTooBig)
		},
	}
}

// wantNoStatus checks that BLOCK_STATUS has no context to tell of.
func wantNoStatus(w *wire) {
	w.wantErrno(request{typ: cmdBlockStatus, length: w.x.f.block()}, errInvalid)
}
