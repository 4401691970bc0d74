//go:build !manual

package main

import "github.com/spf13/cobra"

// extraCommands are none; see manual_on.go.
func extraCommands() []*cobra.Command { return nil }
