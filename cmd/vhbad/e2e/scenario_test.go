//go:build kernel

package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// bootStep is the first step of every scenario.
const bootStep = "boot"

const (
	// diskSize is as small as mkfs.xfs allows with room to spare; a memory disk
	// takes only what is written.
	diskSize = "512MiB"
	// treeFiles is how many files each file system gets.
	treeFiles = 10000
)

// A filesystem says how one kind is made and checked.
type filesystem struct {
	name        string
	mkfs, check []string // the device's path follows
}

var (
	ext4  = filesystem{"ext4", []string{"mkfs.ext4", "-q"}, []string{"e2fsck", "-f", "-n"}}
	xfs   = filesystem{"xfs", []string{"mkfs.xfs", "-q"}, []string{"xfs_repair", "-n"}}
	btrfs = filesystem{"btrfs", []string{"mkfs.btrfs", "-q"}, []string{"btrfs", "check", "--readonly"}}
)

// scenarios lists all boots. Each client takes each file system over each transport
// and over one and four connections, in as few boots as that needs.
func scenarios() []scenario {
	return append(crashScenarios(), []scenario{
		verifyScenario(),
		attachScenario(nbdClient, overUnix, 1, ext4, btrfs),
		attachScenario(nbdClient, overTCP, 4, ext4, btrfs),
		attachScenario(nbdClient, overUnix, 4, xfs),
		attachScenario(nbdClient, overTCP, 1, xfs),
		attachScenario(vhbadClient, overUnix, 4, ext4, btrfs),
		attachScenario(vhbadClient, overTCP, 1, xfs),
		restartScenario(),
		persistScenario(),
		growScenario(),
		timeoutScenario(),
		tlsScenario(),
		vsockScenario(),
	}...)
}

// fullScenarios lists what -full adds: all file systems in each pairing.
func fullScenarios() []scenario {
	var full []scenario
	for _, c := range []client{nbdClient, vhbadClient} {
		for _, tr := range []transport{overUnix, overTCP} {
			for _, connections := range []int{1, 4} {
				full = append(full, attachScenario(c, tr, connections, ext4, xfs, btrfs))
			}
		}
	}
	return full
}

// scenarioNamed finds a scenario. Host and guest run the same binary, so they agree.
func scenarioNamed(name string) (scenario, bool) {
	for _, s := range append(scenarios(), fullScenarios()...) {
		if s.name == name {
			return s, true
		}
	}
	return scenario{}, false
}

// attachScenario takes each file system through its life on a device of so many
// connections: make it, fill it, trim it, detach, attach again, check everything.
func attachScenario(c client, tr transport, connections int, filesystems ...filesystem) scenario {
	s := scenario{name: fmt.Sprintf("%s/%s/connections=%d", c.name, tr.network, connections)}
	for _, fs := range filesystems {
		s.name += "/" + fs.name
	}
	add := func(name string, run func(g *guest) error) { s.steps = append(s.steps, step{name, run}) }
	add("start", func(g *guest) error { return g.startServer(tr, "memory:"+diskSize) })
	for _, fs := range filesystems {
		add(fs.name+"/attach", func(g *guest) error { return g.attach(c, tr, connections) })
		s.steps = append(s.steps, fillSteps(fs)...)
		add(fs.name+"/detach", func(g *guest) error { return g.detach(c) })
		add(fs.name+"/attach_again", func(g *guest) error { return g.attach(c, tr, connections) })
		s.steps = append(s.steps, checkSteps(fs)...)
		add(fs.name+"/detach_again", func(g *guest) error { return g.detach(c) })
	}
	add("stop", (*guest).stopServer)
	return s
}

// fillSteps make a file system on the attached device, fill it and unmount it.
func fillSteps(fs filesystem) []step {
	return []step{
		{fs.name + "/mkfs", func(g *guest) error {
			if err := g.run("blkdiscard", "-f", guestDevice); err != nil {
				return err
			}
			return g.run(fs.mkfs[0], append(fs.mkfs[1:], guestDevice)...)
		}},
		{fs.name + "/mount", func(g *guest) error { return g.mount(fs.name) }},
		{fs.name + "/files", func(g *guest) error { return tree{g.seed, treeFiles}.write(guestMount) }},
		{fs.name + "/fstrim", func(g *guest) error {
			out, err := g.output("fstrim", "-v", guestMount)
			if err != nil {
				return err
			}
			if strings.Contains(out, " 0 B ") {
				return fmt.Errorf("fstrim trimmed nothing: %s", out)
			}
			return nil
		}},
		{fs.name + "/unmount", (*guest).unmount},
	}
}

// checkSteps check a file system, that its files are as they were, and unmount it.
func checkSteps(fs filesystem) []step {
	return []step{
		{fs.name + "/fsck", func(g *guest) error { return g.run(fs.check[0], append(fs.check[1:], guestDevice)...) }},
		{fs.name + "/mount_again", func(g *guest) error { return g.mount(fs.name) }},
		{fs.name + "/files_again", func(g *guest) error { return tree{g.seed, treeFiles}.check(guestMount) }},
		{fs.name + "/unmount_again", (*guest).unmount},
	}
}

// verifyScenario writes at depth 32 and has fio check every block that it reads.
func verifyScenario() scenario {
	s := scenario{name: "fio"}
	s.steps = append(s.steps, step{"start", func(g *guest) error { return g.startServer(overUnix, "memory:"+diskSize) }})
	for _, connections := range []int{1, 4} {
		prefix := fmt.Sprintf("connections=%d/", connections)
		s.steps = append(s.steps,
			step{prefix + "attach", func(g *guest) error { return g.attach(nbdClient, overUnix, connections) }},
			step{prefix + "verify_4KiB", func(g *guest) error { return g.fio("randwrite", "4k", "12m") }},
			step{prefix + "verify_mixed", func(g *guest) error { return g.fio("randrw", "512-128k", "24m") }},
			step{prefix + "verify_trim", func(g *guest) error { return g.fio("randtrimwrite", "64k", "16m") }},
			step{prefix + "detach", func(g *guest) error { return g.detach(nbdClient) }})
	}
	s.steps = append(s.steps, step{"stop", (*guest).stopServer})
	return s
}

// fio writes sizeBytes at random places of the device, 32 at a time, reads them
// back and verifies a checksum in each block.
func (g *guest) fio(mix, blockSize, size string) error {
	return g.run("fio", "--name=verify", "--filename="+guestDevice, "--rw="+mix, "--bsrange="+blockRange(blockSize),
		"--size="+size, "--iodepth=32", "--ioengine=libaio", "--direct=1", "--thread",
		"--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--do_verify=1", "--fsync=256",
		fmt.Sprintf("--randseed=%d", g.seed%1_000_000_007))
}

func blockRange(size string) string {
	if strings.Contains(size, "-") {
		return size
	}
	return size + "-" + size
}

// restartScenario keeps files on a file-backed disk over a server's orderly end
// and over its sudden death. The image is on tmpfs: that is where the guest can
// write, and unlike hostfs it knows holes, so that the disk can be trimmed.
func restartScenario() scenario {
	s := scenario{name: "restart"}
	add := func(name string, run func(g *guest) error) { s.steps = append(s.steps, step{name, run}) }
	start := func(g *guest) error {
		if g.kind == serverVhbad { // it makes the image if there is none
			return g.startServer(overUnix, "file:"+guestImage+",size="+diskSize)
		}
		f, err := os.OpenFile(guestImage, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Truncate(512<<20), f.Close()); err != nil {
			return err
		}
		return g.startServer(overUnix, "file:"+guestImage)
	}
	attach := func(g *guest) error { return g.attach(nbdClient, overUnix, 4) }
	detach := func(g *guest) error { return g.detach(nbdClient) }

	add("start", start)
	add("attach", attach)
	s.steps = append(s.steps, fillSteps(ext4)...)
	add("detach", detach)
	add("sigterm", (*guest).stopServer)
	for _, round := range []string{"sigterm", "sigkill"} {
		add("after_"+round+"/start", start)
		add("after_"+round+"/attach", attach)
		for _, check := range checkSteps(ext4) {
			add("after_"+round+"/"+check.name, check.run)
		}
		add("after_"+round+"/detach", detach)
		if round == "sigterm" {
			add("sigkill", (*guest).killServer)
		}
	}
	add("stop", (*guest).stopServer)
	return s
}
