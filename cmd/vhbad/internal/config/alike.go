package config

import (
	"fmt"
	"strings"
)

// MaxAlike is how many words may have been meant for a question; of more, all that there
// are say more.
const MaxAlike = 3

// Alike returns those of words that may have been meant by one that is none of them: what
// begins with it, or has one or two other letters. In a short word only one may be wrong,
// or it would be any other.
func Alike(word string, words []string) (meant []string) {
	word = strings.ToLower(word)
	most := min(2, max(1, len(word)/3))
	for _, w := range words {
		if l := strings.ToLower(w); strings.HasPrefix(l, word) || distance(l, word) <= most {
			meant = append(meant, w)
		}
	}
	return meant
}

// distance returns in how many places one has to insert, remove or change a byte to make b
// of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1) // from the beginning of a to each of b
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := before
			if a[i] != b[j] {
				d = 1 + min(before, row[j], row[j+1])
			}
			before, row[j+1] = row[j+1], d
		}
	}
	return row[len(b)]
}

// meantOr asks whether one of words was meant by word, which is none of them. If none is
// near, it says what is wanted.
func meantOr(word string, words []string, want string) string {
	if meant := Alike(word, words); len(meant) > 0 && len(meant) <= MaxAlike {
		return fmt.Sprintf("is %s meant?", strings.Join(meant, " or "))
	}
	return want
}
