package conformance

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// A Keyword is one occurrence of a key word, such as MUST, in the specification.
type Keyword struct {
	// Section is the heading that it stands under or, in a list of definitions,
	// the name that is defined there, such as NBD_CMD_READ.
	Section string
	// N counts the key words of the section from 1.
	N int
	// Word is MUST, MUST NOT, SHOULD, SHOULD NOT, SHALL, SHALL NOT, REQUIRED,
	// RECOMMENDED or NOT RECOMMENDED.
	Word string
	// Mark is a digest of the words around it in its paragraph: it stays when the
	// key word is moved, and changes when the sentence does.
	Mark string
	// Line of the text, from 1.
	Line int
}

// A Specification is what the suite needs to know about the text of a doc/proto.md.
type Specification struct {
	// Sections are all sections of the text, also those without key words.
	Sections []string
	// Keywords are in the order of Sections.
	Keywords []Keyword
}

var (
	headingLine = regexp.MustCompile(`^#+ +(.*?) *$`)
	itemLine    = regexp.MustCompile(`^( *)\* (\S.*?) *$`)
	itemNumber  = regexp.MustCompile(` \([0-9^+ ]+\)`)
	// keyword is preceded by what must not be a quotation mark.
	keyword = regexp.MustCompile(`(^|[^"'A-Za-z])((?:MUST|SHOULD|SHALL)(?:\s+NOT)?|(?:NOT\s+)?RECOMMENDED|REQUIRED)\b`)
)

// A part is a section whose text is being gathered. An item of a list ends where
// its indentation does, and the section around it goes on.
type part struct {
	section string
	indent  int // of the item's bullet; -1 is a heading
	text    strings.Builder
	lines   []int // of each line of text
}

// ReadSpecification finds the sections and the key words of a doc/proto.md. A key word in
// quotation marks is only talked about, and is not counted.
//
// Errors: those of the reader, and a text without any key word.
func ReadSpecification(r io.Reader) (*Specification, error) {
	var lines []string
	scanner := bufio.NewScanner(r)
	for scanner.Scan() {
		lines = append(lines, scanner.Text())
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("specification: %w", err)
	}
	var parts, open []*part
	for i, line := range lines {
		blank := strings.TrimSpace(line) == ""
		indent := len(line) - len(strings.TrimLeft(line, " "))
		if m := headingLine.FindStringSubmatch(line); m != nil {
			open = []*part{{section: plainName(m[1]), indent: -1}}
			parts = append(parts, open[0])
			continue
		}
		for !blank && len(open) > 1 && indent <= open[len(open)-1].indent {
			open = open[:len(open)-1]
		}
		if m := itemLine.FindStringSubmatch(line); m != nil && definition(lines[i+1:], indent) {
			p := &part{section: plainName(m[2]), indent: indent}
			parts, open = append(parts, p), append(open, p)
			continue
		}
		if len(open) > 0 {
			p := open[len(open)-1]
			p.text.WriteString(line + "\n")
			p.lines = append(p.lines, i+1)
		}
	}
	s := &Specification{}
	for _, p := range parts {
		s.Sections = append(s.Sections, p.section)
		s.Keywords = append(s.Keywords, p.keywords()...)
	}
	if len(s.Keywords) == 0 {
		return nil, fmt.Errorf("specification: no MUST in %d lines: is it the doc/proto.md of the NBD project?", len(lines))
	}
	return s, nil
}

// plainName is a heading or an item without its markup and its number.
func plainName(s string) string {
	return itemNumber.ReplaceAllString(strings.ReplaceAll(s, "`", ""), "")
}

// definition says whether an item that is followed by the lines after is a line of its
// own with text under it.
func definition(after []string, indent int) bool {
	if len(after) == 0 || strings.TrimSpace(after[0]) != "" {
		return false
	}
	for _, line := range after {
		if text := strings.TrimLeft(line, " "); text != "" {
			return len(line)-len(text) > indent
		}
	}
	return false
}

// keywords are those of the part's text.
func (p *part) keywords() []Keyword {
	const before, behind = 5, 8 // words that the mark is of
	text := p.text.String()
	var ks []Keyword
	for _, m := range keyword.FindAllStringSubmatchIndex(text, -1) {
		from, to := m[4], m[5]
		begin := strings.LastIndex(text[:from], "\n\n") + 1 // of the paragraph
		paragraph, _, _ := strings.Cut(text[to:], "\n\n")
		head, tail := strings.Fields(text[begin:from]), strings.Fields(paragraph)
		word := strings.Fields(text[from:to])
		words := slices.Concat(head[max(0, len(head)-before):], word, tail[:min(len(tail), behind)])
		sum := sha256.Sum256([]byte(strings.Join(words, " ")))
		ks = append(ks, Keyword{
			Section: p.section, N: len(ks) + 1,
			Word: strings.Join(word, " "),
			Mark: hex.EncodeToString(sum[:4]),
			Line: p.lines[strings.Count(text[:from], "\n")],
		})
	}
	return ks
}
