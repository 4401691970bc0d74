package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vhbad/vhbad/client"
)

func newEvents() *cobra.Command {
	var d daemonFlags
	var noFollow bool
	var count int
	var since uint64
	var types []string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happens in a running daemon",
		Long: `Events shows what happens as it happens: clients that come and go, resets,
disks added and removed, reloads. It ends when the daemon stops.

The daemon remembers its newest events: --since 0 shows those first, and
--since N those behind number N. With --json each line is one JSON object.
--type T --count 1 waits for something to happen.`,
		Example: `  vhbad events
  vhbad events --since 0 --no-follow
  vhbad events --type config.reloaded --count 1
  vhbad events --json --type connection.opened --type connection.closed`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if count < 0 {
				return usage(fmt.Errorf("--count %d: want at least 1, or 0 for no end", count))
			}
			f := client.EventFilter{NoFollow: noFollow}
			if cmd.Flags().Changed("since") {
				f.Since = &since
			}
			for _, t := range types {
				f.Types = append(f.Types, client.EventType(t))
			}
			return d.with(cmd, func(ctx context.Context, c *client.Client) error {
				return printEvents(ctx, cmd.OutOrStdout(), c, f, count, d.asJSON)
			})
		},
	}
	f := cmd.Flags()
	f.Uint64Var(&since, "since", 0, "begin behind the event with this number, 0 for all remembered (default: with the next)")
	f.StringArrayVar(&types, "type", nil, "show this type of event, again for more (default all)")
	f.IntVar(&count, "count", 0, "end after so many events (default never)")
	f.BoolVar(&noFollow, "no-follow", false, "end with the newest event")
	d.addFlags(cmd, "print JSON, one event a line", "give up if it has not ended by then (default never)",
		"what was waited for has not come, or the daemon does not answer: `vhbad status` says")
	var names []string
	for _, t := range client.EventTypes() {
		names = append(names, string(t))
	}
	offer(cmd, "type", names...)
	return cmd
}

// printEvents prints events as they come, and ends after count of them unless that is 0.
func printEvents(ctx context.Context, w io.Writer, c *client.Client, f client.EventFilter, count int, asJSON bool) error {
	s, err := c.Events(ctx, f)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	for e, err := range s.All() {
		if err != nil {
			return err
		}
		if err := printEvent(w, &e, asJSON); err != nil {
			return err
		}
		if count--; count == 0 {
			return nil
		}
	}
	return nil
}

// printEvent prints one event, on one line.
func printEvent(w io.Writer, e *client.Event, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(e)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s %s", e.Seq, e.Time.Local().Format(time.RFC3339), e.Type)
	if e.Disk != "" {
		b.WriteString(" disk=" + word(e.Disk))
	}
	for _, key := range slices.Sorted(maps.Keys(e.Fields)) {
		switch v := e.Fields[key].(type) {
		case string:
			if v != "" {
				fmt.Fprintf(&b, " %s=%s", key, word(v))
			}
		case float64:
			fmt.Fprintf(&b, " %s=%s", key, strconv.FormatFloat(v, 'f', -1, 64))
		default:
			fmt.Fprintf(&b, " %s=%v", key, v)
		}
	}
	_, err := fmt.Fprintln(w, b.String())
	return err
}

// word returns s, quoted if it would not remain one word.
func word(s string) string {
	if quoted := strconv.Quote(s); strings.ContainsAny(s, " =") || len(quoted) != len(s)+2 {
		return quoted
	}
	return s
}
