package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
)

// TestServe_Flags: each flag that stands for a value of the configuration file is in the
// configuration, if it is given; otherwise what the file says stays.
func TestServe_Flags(t *testing.T) {
	var all *pflag.FlagSet
	newFlags := func() (*serveFlags, *pflag.FlagSet) {
		s, cmd := newServeFlags(), &cobra.Command{}
		s.addFlags(cmd)
		return s, cmd.Flags()
	}
	_, all = newFlags()
	all.VisitAll(func(flag *pflag.Flag) {
		switch flag.Name {
		case "config", "single", "takeover", "takeover-discard-memory":
			return // say what to do, not how
		}
		t.Run(flag.Name, func(t *testing.T) {
			s, f := newFlags()
			file := new(config.File)
			if err := s.merge(file, f); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(new(config.File), file); diff != "" {
				t.Errorf("not given: -want +got\n%s", diff)
			}
			taken := false
			for _, value := range []string{"true", "7", "7s", "tcp://:7", "d=memory:1MiB"} {
				if taken = f.Set(flag.Name, value) == nil; taken {
					break
				}
			}
			if !taken {
				t.Fatal("want a value that it takes")
			}
			if err := s.merge(file, f); err != nil {
				t.Fatal(err)
			}
			if cmp.Equal(new(config.File), file, cmpopts.IgnoreFields(config.File{}, "Zeros")) {
				t.Error("given: it is not in the configuration")
			}
		})
	})
}
