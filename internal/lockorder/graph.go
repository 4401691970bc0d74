package lockorder

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// An Edge says that a lock of kind To was taken while one of kind From was held.
type Edge struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Where string `json:"where"` // package and test that saw it first
}

// A Graph is a set of edges between kinds of lock. The zero Graph is empty.
type Graph struct {
	where map[[2]string]string
}

// Add adds an edge and reports whether it is new. Of an edge that is not, the
// first place is kept.
func (g *Graph) Add(e Edge) bool {
	k := [2]string{e.From, e.To}
	if _, ok := g.where[k]; ok {
		return false
	}
	if g.where == nil {
		g.where = map[[2]string]string{}
	}
	g.where[k] = e.Where
	return true
}

// Edges lists the edges in order of their names.
func (g *Graph) Edges() []Edge {
	edges := make([]Edge, 0, len(g.where))
	for k, where := range g.where {
		edges = append(edges, Edge{k[0], k[1], where})
	}
	slices.SortFunc(edges, func(a, b Edge) int {
		return cmp.Or(strings.Compare(a.From, b.From), strings.Compare(a.To, b.To))
	})
	return edges
}

// Cycle returns the edges of a cycle, each beginning where the one before ends;
// nil: there is none. Locks of one kind are taken in ascending order, which the
// verifier checks at each acquisition, and make no cycle here.
func (g *Graph) Cycle() []Edge {
	edges := g.Edges()
	done := map[string]bool{}
	var path []Edge
	var visit func(at string) []Edge
	visit = func(at string) []Edge {
		if i := slices.IndexFunc(path, func(e Edge) bool { return e.From == at }); i >= 0 {
			return slices.Clone(path[i:])
		}
		if done[at] {
			return nil
		}
		for _, e := range edges {
			if e.From != at || e.To == at {
				continue
			}
			path = append(path, e)
			if cycle := visit(e.To); cycle != nil {
				return cycle
			}
			path = path[:len(path)-1]
		}
		done[at] = true
		return nil
	}
	for _, e := range edges {
		if cycle := visit(e.From); cycle != nil {
			return cycle
		}
	}
	return nil
}

// Describe tells a cycle, with where each of its edges was seen.
func Describe(cycle []Edge) string {
	var b strings.Builder
	for _, e := range cycle {
		fmt.Fprintf(&b, "\n\t%s held, %s taken: %s", e.From, e.To, e.Where)
	}
	return b.String()
}
