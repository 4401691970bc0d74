package main

import (
	"fmt"
	"os"

	"github.com/vhbad/vhbad/internal/lockorder"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: merge FOLDER, the one that the tests had in "+lockorder.Variable)
		os.Exit(2)
	}
	g, err := lockorder.Merge(os.Args[1], lockorder.Contributors)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lock order:", err)
		os.Exit(1)
	}
	fmt.Printf("lock order: %d edges of %d packages have no cycle\n", len(g.Edges()), len(lockorder.Contributors))
}
