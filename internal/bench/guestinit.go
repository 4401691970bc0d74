package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhbad/vhbad/internal/guest"
)

// The inside of a guest: this program is its process 1.

const guestMount = "/run/disk"

// guestMain carries out an order and powers the guest off, if this process is process 1 of
// a guest; otherwise it returns false at once.
func guestMain() bool {
	return guest.Main(envGuest, func(orders string, reports *os.File) {
		last := guestReport{Done: true}
		if err := carryOut(orders, reports); err != nil {
			last = guestReport{Error: err.Error()}
		}
		if err := tell(reports, &last); err != nil {
			fmt.Println("guest:", err)
		}
	})
}

func tell(w io.Writer, r *guestReport) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// carryOut measures every row of an order.
func carryOut(orders string, reports io.Writer) (err error) {
	if err := guest.Enter(); err != nil {
		return err
	}
	var order guestOrder
	text, err := os.ReadFile(orders)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &order); err != nil {
		return fmt.Errorf("%s: %w", orders, err)
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	if err := tell(reports, &guestReport{Kernel: "Linux " + unix.ByteSliceToString(name.Release[:])}); err != nil {
		return err
	}
	kinds := order.servers()
	if err := guest.LoadModule("drivers/block/nbd.ko", fmt.Sprintf("nbds_max=%d", len(kinds))); err != nil {
		return err
	}
	shop := shop{vhbad: order.Vhbad, dir: guest.Temporary}
	for _, r := range guestRows() {
		if !slices.Contains(order.Rows, r.name) {
			continue
		}
		if err := guestRow(&shop, &order, r, reports); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}

// guestRow measures one row, on servers of its own.
func guestRow(shop *shop, order *guestOrder, r row, reports io.Writer) (err error) {
	var servers []*process
	defer func() {
		for _, p := range servers {
			err = errors.Join(err, command("nbd-client", "-d", p.device), p.stop())
		}
	}()
	for i, k := range order.servers() {
		p, err := shop.start(k, guestDiskBytes, "")
		if err != nil {
			return err
		}
		if err := p.attach(i); err != nil {
			return errors.Join(err, p.stop())
		}
		servers = append(servers, p)
	}
	prepare := func(p *process) error { return fill(p, guestDiskBytes) }
	measure := func(p *process, round int) (result, error) {
		return runFio(p, r.load, guestDiskBytes, order.RunTime, round)
	}
	if r.name == guestUntar {
		tree := filepath.Join(guest.Temporary, "tree.tar")
		if err := copyFile(order.Tree, tree); err != nil { // reading the host's file system from here is slow
			return err
		}
		measure = func(p *process, _ int) (result, error) { return untar(p, tree) }
		prepare = func(p *process) error { // programs are read from the host the first time they run
			_, err := untar(p, tree)
			return err
		}
	}
	for _, p := range servers {
		if err := prepare(p); err != nil {
			return err
		}
	}
	for round := range order.rounds(r.name) {
		for i := range servers {
			p := servers[(i+round)%len(servers)]
			res, err := measure(p, round)
			if err != nil {
				return err
			}
			if err := tell(reports, &guestReport{Row: r.name, Server: p.kind, Result: &res}); err != nil {
				return err
			}
		}
	}
	return nil
}

// attach attaches /dev/nbdN to the server, by one connection.
func (p *process) attach(n int) error {
	p.device = "/dev/nbd" + strconv.Itoa(n)
	return command("nbd-client", "-unix", p.socket, p.device, "-b", strconv.Itoa(4*kib), "-C", "1")
}

// untar makes a file system on the device, unpacks a tree into it and unmounts it, which
// writes everything out, and measures the time that this takes.
//
// Up to 5 s after the mount, at a random moment, the kernel would begin to zero what mkfs
// has left out: some rounds would write a sixth more.
func untar(p *process, tree string) (result, error) {
	if err := os.MkdirAll(guestMount, 0o755); err != nil {
		return result{}, err
	}
	cpu, err := processorTime(p.pid())
	if err != nil {
		return result{}, err
	}
	begin := time.Now()
	if err := command("mkfs.ext4", "-q", "-F", "-b", strconv.Itoa(4*kib), p.device); err != nil {
		return result{}, err
	}
	if err := unix.Mount(p.device, guestMount, "ext4", 0, "noinit_itable"); err != nil {
		return result{}, fmt.Errorf("mount %s: %w", p.device, err)
	}
	err = command("tar", "-xf", tree, "-C", guestMount)
	if err := errors.Join(err, unix.Unmount(guestMount, 0)); err != nil {
		return result{}, err
	}
	taken := time.Since(begin)
	after, err := processorTime(p.pid())
	return result{Seconds: taken.Seconds(), CPUSeconds: (after - cpu).Seconds()}, err
}

// command runs a command to its end; its error says what it printed.
func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func copyFile(from, to string) (err error) {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}
