//go:build kernel

package e2e

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	vhbad "github.com/vhbad/vhbad/client"
)

// growScenario enlarges a disk under a mounted file system, once by asking attach to
// look and once by having it look by itself.
func growScenario() scenario {
	s := scenario{name: "grow"}
	p := new(persistence)
	const mib = 1 << 20
	var was uint64 // bytes of the file system
	add := func(name string, run func(g *guest) error) { s.steps = append(s.steps, step{name, run}) }
	grown := func(name string, mibs int, extra func(g *guest) error) {
		add(name+"/disk_grow", func(g *guest) error {
			var d vhbad.Disk
			if err := g.json(&d, "disk", "grow", exportName, strconv.Itoa(mibs)+"MiB", "--admin", "/run/admin.sock"); err != nil {
				return err
			}
			if d.Name != exportName || d.State != vhbad.DiskServing || d.SizeBytes != uint64(mibs*mib) || d.Path != guestImage {
				return fmt.Errorf("disk grow says %+v", d)
			}
			return nil
		})
		if extra != nil {
			add(name+"/ask", extra)
		}
		add(name+"/device", func(*guest) error {
			return waitFor(guestDevice+" has grown", func() bool { return sysfs("size") == strconv.Itoa(mibs*mib/512) })
		})
		add(name+"/resize2fs", func(g *guest) error { return g.run("resize2fs", guestDevice) })
		add(name+"/larger", func(*guest) error {
			var st unix.Statfs_t
			if err := unix.Statfs(guestMount, &st); err != nil {
				return err
			}
			size := st.Blocks * uint64(st.Bsize)
			if least := was + 32*mib; size < least {
				return fmt.Errorf("the file system has %d bytes, had %d: want at least %d", size, was, least)
			}
			was = size
			return nil
		})
		add(name+"/write", func(g *guest) error {
			return tree{g.seed + uint64(mibs), treeFiles / 10}.write(guestMount + "/" + name)
		})
	}

	add("start", func(g *guest) error { return g.startServer(overUnix, "file:"+guestImage+",size=64MiB") })
	add("attach", func(g *guest) error { return p.startAttach(g, "--connections", "2", "--recheck", "1s") })
	add("mkfs", func(g *guest) error { return g.run("mkfs.ext4", "-q", guestDevice) })
	add("mount", func(g *guest) error { return g.mount(ext4.name) })
	add("files", func(g *guest) error { return tree{g.seed, treeFiles / 10}.write(guestMount) })
	grown("recheck", 128, nil)
	add("attach_again", func(g *guest) error {
		if err := p.stopAttachRefused(g); err != nil {
			return err
		}
		return p.startAttach(g, "--connections", "2")
	})
	grown("sighup", 256, func(*guest) error { return p.attach.Process.Signal(unix.SIGHUP) })
	add("no_errors", (*guest).wantNoErrors)
	add("files_again", func(g *guest) error {
		return errors.Join(tree{g.seed, treeFiles / 10}.check(guestMount),
			tree{g.seed + 128, treeFiles / 10}.check(guestMount+"/recheck"),
			tree{g.seed + 256, treeFiles / 10}.check(guestMount+"/sighup"))
	})
	add("unmount", (*guest).unmount)
	add("fsck", func(g *guest) error { return g.run(ext4.check[0], append(ext4.check[1:], guestDevice)...) })
	add("detach", func(g *guest) error { return g.detach(vhbadClient) })
	add("stop", (*guest).stopServer)
	add("image", func(*guest) error {
		fi, err := os.Stat(guestImage)
		if err != nil {
			return err
		}
		if fi.Size() != 256*mib {
			return fmt.Errorf("%s has %d bytes, want %d", guestImage, fi.Size(), 256*mib)
		}
		return nil
	})
	return s
}
