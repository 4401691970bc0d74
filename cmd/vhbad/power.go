package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/fault"
)

func newPower() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "power",
		Short: "Cut the power of disks with a write cache",
		Long: `Power cuts the power of a disk that runs with cache=writeback, and tells what
that did. What was flushed stays; each write that was not may survive or not, as
on a real drive, decided by a seed.`,
		Example: `  vhbad power cut db --seed 7 --drop-connections
  vhbad power status db`,
		Args: noArgs,
		RunE: wantOneOf("cut or status"),
	}
	cmd.AddCommand(newPowerCut(), newPowerStatus())
	return cmd
}

func newPowerCut() *cobra.Command {
	var d daemonFlags
	var seed uint64
	var offFor time.Duration
	var o client.PowerCutOptions
	cmd := &cobra.Command{
		Use:   "cut DISK",
		Short: "Cut the power of a disk, and give it back",
		Long: `Cut takes the power from a disk at once. What was flushed, or written with FUA,
stays. Each pending write survives or not by --policy and --seed; then the disk
has power again, with an empty cache. The report tells the fate of each write,
and whether a correct drive may leave such an image: legal, damaged (as asked by
--tear below the block size, or --damage) or hostile (a promise was broken, as by
--lose-flushed, for which the daemon needs --hostile).

POLICY  subset       each write by a coin (default)
        none         nothing that was not flushed
        all          everything
        prefix       the first few, in order of arrival
        reverse      the last few
        one-missing  all but one

Clients stay connected and get errors while the disk is off, and one for their
next flush: the writes that it is for may be gone. With --drop-connections they
are cut off, as by the power cut of a whole machine.`,
		Example: `  vhbad power cut db
  vhbad power cut db --seed 7 --policy one-missing --drop-connections
  vhbad power cut db --policy all --lose-flushed 3
  vhbad power cut db --tear 512 --damage unreadable --off-for 5s --json`,
		Args: wantArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("seed") {
				o.Seed = &seed
			}
			// The daemon's answer would be about fields of the API.
			if most := time.Duration(fault.MaxPowerOff); offFor < 0 || offFor > most {
				return usage(fmt.Errorf("--off-for %s: want 0s to %s", offFor, most))
			}
			if o.LoseFlushed < 0 {
				return usage(fmt.Errorf("--lose-flushed %d: want 0 or more", o.LoseFlushed))
			}
			o.OffForSeconds = offFor.Seconds()
			return d.with(cmd, func(ctx context.Context, c *client.Client) error {
				return cutPower(ctx, cmd.OutOrStdout(), c, args[0], o, d.asJSON)
			})
		},
		ValidArgsFunction: diskNames(&d.path),
	}
	f := cmd.Flags()
	f.Uint64Var(&seed, "seed", 0, "decide by this seed: the same writes and seed give the same image (default: drawn, and told)")
	addCutFlags(cmd, &o.Policy, &o.Tear, &o.Damage)
	f.IntVar(&o.LoseFlushed, "lose-flushed", 0, "lose so many sectors, drawn by the seed, that were flushed: they hold what they held at the last cut, or zeros (hostile)")
	f.DurationVar(&offFor, "off-for", 0, "how long the disk stays without power")
	f.BoolVar(&o.DropConnections, "drop-connections", false, "close the clients' connections, without an answer to what is in flight")
	d.addPatient(cmd)
	return cmd
}

// addCutFlags adds the flags that say, besides the seed, how a power cut is decided.
func addCutFlags(cmd *cobra.Command, policy, tear, damage *string) {
	f := cmd.Flags()
	f.StringVar(policy, "policy", cache.PolicySubset.String(), "which pending writes survive: "+strings.Join(cache.PolicyNames(), ", "))
	f.StringVar(tear, "tear", "none", "let writes survive in pieces of this length: none, 512, 4096")
	f.StringVar(damage, "damage", cache.DamageOld.String(), "what becomes of a sector that was being written: old, garbage, unreadable")
	offer(cmd, "policy", cache.PolicyNames()...)
	offer(cmd, "tear", "none", "512", "4096")
	offer(cmd, "damage", "old", "garbage", "unreadable")
}

func cutPower(ctx context.Context, w io.Writer, c *client.Client, disk string, o client.PowerCutOptions, asJSON bool) error {
	r, err := c.CutPower(ctx, disk, o)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(w, r)
	}
	return printPowerReport(w, r)
}

// maxPrintedWrites is how many of the writes that did not survive are listed in a report
// for people.
const maxPrintedWrites = 20

func printPowerReport(w io.Writer, r *client.PowerReport) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", args...) } // Flush reports
	line("power cut %d of %s by %s: seed %d, policy %s, tear %s, damage %s", r.Number, word(r.Disk), r.Trigger, r.Seed, r.Policy, r.Tear, r.Damage)
	line("%s: %d sectors checked against what was promised%s", r.Class, r.CheckedSectors, countsOf(r.Acts))
	if len(r.Hostile) > 0 {
		line("hostile since the cut before%s: the image is %s", countsOf(r.Hostile), r.ImageClass)
	}
	s := &r.Sectors
	line("%d pending sectors of %d bytes: %d kept, %d lost, %d torn, %d garbage, %d unreadable",
		s.Pending, r.SectorBytes, s.Kept, s.Lost, s.Torn, s.Garbage, s.Unreadable)
	if s.Unreadable > 0 {
		line("unreadable until they are written; when the daemon has ended they read as garbage")
	}
	if r.LoseFlushed > 0 {
		line("%d flushed sectors lost of %d that were to be", s.LostFlushed, r.LoseFlushed)
	}
	if r.DroppedConnections > 0 {
		line("%d connections dropped", r.DroppedConnections)
	}
	var harmed []*client.PowerWrite
	for i := range r.Writes {
		if f := r.Writes[i].Fate; f == "lost" || f == "torn" {
			harmed = append(harmed, &r.Writes[i])
		}
	}
	line("%d of %d pending writes lost or torn", len(harmed), len(r.Writes)+r.WritesOmitted)
	if len(harmed) == 0 {
		return t.Flush()
	}
	line("")
	line("WRITE\tKIND\tOFFSET\tLENGTH\tAGE\tFATE\tKEPT\tLOST\tDAMAGED\tPROMISED")
	for _, x := range harmed[max(0, len(harmed)-maxPrintedWrites):] {
		line("%d\t%s\t%d\t%d\t%s\t%s\t%d\t%d\t%d\t%s", x.ID, x.Kind, x.OffsetBytes, x.LengthBytes,
			time.Duration(x.AgeSeconds*float64(time.Second)).Round(time.Millisecond), x.Fate, x.SectorsKept, x.SectorsLost, x.SectorsDamaged,
			map[bool]string{true: "yes", false: "no"}[x.Promised])
	}
	if n := len(harmed) - maxPrintedWrites; n > 0 {
		line("%d earlier ones: see --json", n)
	}
	return t.Flush()
}

// countsOf lists what a correct drive would not have done.
func countsOf[N int | uint64](acts map[string]N) string {
	var b strings.Builder
	for _, act := range slices.Sorted(maps.Keys(acts)) {
		fmt.Fprintf(&b, ", %s %d", act, acts[act])
	}
	return b.String()
}

func newPowerStatus() *cobra.Command {
	var d daemonFlags
	cmd := &cobra.Command{
		Use:   "status DISK",
		Short: "Show what waits in a disk's write cache, and its last power cuts",
		Example: `  vhbad power status db
  vhbad power status db --json | jq '.reports[-1].sectors'`,
		Args: wantArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.with(cmd, func(ctx context.Context, c *client.Client) error {
				p, err := c.Power(ctx, args[0])
				if err != nil {
					return err
				}
				if d.asJSON {
					return printJSON(cmd.OutOrStdout(), p)
				}
				return printPower(cmd.OutOrStdout(), p)
			})
		},
		ValidArgsFunction: diskNames(&d.path),
	}
	d.add(cmd)
	return cmd
}

func printPower(w io.Writer, p *client.Power) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", args...) } // Flush reports
	onOff := map[bool]string{true: "on", false: "off"}
	line("power %s, write cache %s, eviction %s, hostile: %s", onOff[p.On], onOff[p.WriteCache], p.Eviction, cmp.Or(strings.Join(p.Hostile, ", "), "no"))
	line("%s of %s pending in %d writes, %d unreadable sectors", config.Size(p.PendingBytes), config.Size(p.SizeBytes), p.PendingWrites, p.UnreadableSectors)
	if r := p.Trace; r != nil {
		line("trace %s: %d records, %d bytes", word(r.Path), r.Records, r.Bytes)
		if r.Error != "" {
			line("the trace has ended: %s", r.Error)
		}
	}
	if len(p.Reports) == 0 {
		return t.Flush()
	}
	line("")
	line("CUT\tTIME\tTRIGGER\tSEED\tPOLICY\tCLASS\tPENDING\tKEPT\tLOST\tDAMAGED")
	for i := range p.Reports {
		r := &p.Reports[i]
		s := &r.Sectors
		line("%d\t%s\t%s\t%d\t%s\t%s\t%d\t%d\t%d\t%d", r.Number, r.Time.Local().Format(time.RFC3339), r.Trigger, r.Seed, r.Policy, r.Class,
			s.Pending, s.Kept, s.Lost, s.Torn+s.Garbage+s.Unreadable)
	}
	return t.Flush()
}
