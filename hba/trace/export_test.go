package trace

// Encode is the file of a header and records, without an end.
func Encode(h Header, records []Record) []byte {
	b, sum := h.appendTo(nil)
	for i := range records {
		b, sum = appendRecord(b, &records[i].Step, records[i].Time.Sub(h.Start), sum)
	}
	return b
}
