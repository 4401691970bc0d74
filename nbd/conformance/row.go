package conformance

// A Level is how strongly the specification demands something.
type Level uint8

// Levels, as in RFC 2119.
const (
	Must Level = iota
	Should
)

// String returns the word of the specification.
func (l Level) String() string {
	if l == Must {
		return "MUST"
	}
	return "SHOULD"
}

// A Verdict is what a row says about a server.
type Verdict string

// Verdicts, from good to bad.
const (
	NotApplicable Verdict = "n/a" // the server does not offer what the rule is about
	Pass          Verdict = "pass"
	Fail          Verdict = "fail"
	Hang          Verdict = "hang" // what was due did not come before the deadline
)

// Bad says whether the verdict breaks the rule.
func (v Verdict) Bad() bool { return v == Fail || v == Hang }

// worse says whether v outweighs u when two runs are taken together.
func (v Verdict) worse(u Verdict) bool {
	rank := map[Verdict]int{NotApplicable: 0, Pass: 1, Fail: 2, Hang: 3}
	return rank[v] > rank[u]
}

// A Row is one rule of the specification and the check of it. The table of requirements
// says, under the row's name, what the row cites.
type Row struct {
	// Name is stable and unique: group, slash, rule.
	Name string
	// Level is the strength of the strongest key word that the row shows.
	Level Level
	// Rule is the rule in our own words.
	Rule string
	// needs says what a server must offer for the row to apply; nil means nothing.
	needs func(f *features) (what string, ok bool)
	check func(x *probe)
}

// group is the part of the name before the slash.
func (r *Row) group() string {
	for i := range len(r.Name) {
		if r.Name[i] == '/' {
			return r.Name[:i]
		}
	}
	return r.Name
}

// Rows returns all rows, in the order in which they run.
func Rows() []Row {
	var all []Row
	for _, rows := range [][]Row{
		handshakeRows(), optionRows(), infoRows(), metaRows(), extendedOptionRows(), tlsRows(),
		transmissionRows(), readRows(), writeRows(), effectRows(), flagRows(), statusRows(), structuredRows(), extendedRows(),
	} {
		all = append(all, rows...)
	}
	return all
}

// Needs of rows.
type needs = func(f *features) (what string, ok bool)

func need(what string, has func(f *features) bool) needs {
	return func(f *features) (string, bool) { return what, has(f) }
}

// all joins needs.
func all(each ...needs) needs {
	return func(f *features) (string, bool) {
		for _, n := range each {
			if what, ok := n(f); !ok {
				return what, false
			}
		}
		return "", true
	}
}

func needFlag(name string, bit uint16) needs {
	return need(name, func(f *features) bool { return f.flags&bit != 0 })
}

func needNoFlag(name string, bit uint16) needs {
	return need("a server without "+name, func(f *features) bool { return f.flags&bit == 0 })
}

func needSize(what string, sizeBytes uint64) needs {
	return need("an export of at least "+what, func(f *features) bool { return f.sizeBytes >= sizeBytes })
}

var (
	needWritable   = need("a writable export", func(f *features) bool { return f.flags&flagReadOnly == 0 })
	needReadOnly   = needFlag("a read-only export", flagReadOnly)
	needInfo       = need("NBD_OPT_INFO", func(f *features) bool { return f.info })
	needList       = need("NBD_OPT_LIST", func(f *features) bool { return f.list })
	needStructured = need("structured replies", func(f *features) bool { return f.structured })
	needExtended   = need("extended headers", func(f *features) bool { return f.extended })
	needAllocation = need("the context base:allocation", func(f *features) bool { return f.allocation })
	needTLS        = need("TLS", func(f *features) bool { return f.tls })
	needNamed      = need("a server that refuses unknown names", func(f *features) bool { return !f.anyName })
	needBlockSize  = need("NBD_INFO_BLOCK_SIZE", func(f *features) bool { return f.hasBlockSize })
	needBlocks     = need("a minimum block above 1", func(f *features) bool { return f.minBlock > 1 })
	needBytes      = need("a minimum block of 1", func(f *features) bool { return f.minBlock == 1 })
	needForcedTLS  = need("TLS that is required", func(f *features) bool { return f.tls && f.forcedTLS })
	needTLSOnly    = need("an export for TLS only", func(f *features) bool { return f.tlsOnly != "" })
	needChoiceTLS  = need("TLS that is optional", func(f *features) bool { return f.tls && !f.forcedTLS })
)
