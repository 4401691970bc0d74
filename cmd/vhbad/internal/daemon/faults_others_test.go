package daemon

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/hba/fault"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
	"github.com/vhbad/vhbad/port"
)

// sickness has a rule of each kind, without its name and disk.
var sickness = map[fault.Kind]string{
	fault.KindStatus:             "action: {kind: status, sense: {key: hardware-error}}, match: {every: 2}",
	fault.KindErrno:              "action: {kind: errno, errno: EIO}, match: {every: 2}",
	fault.KindMediumError:        "action: {kind: medium-error}, match: {offset: 0}",
	fault.KindBusy:               "action: {kind: busy}, budget: 3",
	fault.KindTaskSetFull:        "action: {kind: task-set-full}, budget: 3",
	fault.KindNotReady:           "action: {kind: not-ready}, match: {every: 2}",
	fault.KindUnitAttention:      "action: {kind: unit-attention}, match: {every: 2}",
	fault.KindWriteProtect:       "action: {kind: write-protect}, match: {every: 2}",
	fault.KindShortTransfer:      "action: {kind: short-transfer}, match: {every: 2}",
	fault.KindHang:               "action: {kind: hang, for: 5ms}, match: {every: 2}",
	fault.KindGate:               "action: {kind: gate, at: after, for: 5ms}, match: {every: 2}",
	fault.KindLatency:            "action: {kind: latency, latency: {mean: 1ms}}",
	fault.KindStall:              "action: {kind: stall, for: 3ms, period: 5ms}",
	fault.KindRate:               "action: {kind: rate, bytes-per-second: 1MiB}",
	fault.KindQueue:              "action: {kind: queue, lanes: 1, latency: {mean: 1ms}}",
	fault.KindReorder:            "action: {kind: reorder, for: 3ms}",
	fault.KindCutReply:           "action: {kind: cut-reply}, match: {every: 5}",
	fault.KindSlowHandshake:      "action: {kind: slow-handshake, for: 3ms}",
	fault.KindResetFails:         "action: {kind: reset-fails}, match: {op: reset-lun}",
	fault.KindUnplug:             "action: {kind: unplug, for: 10ms}, match: {skip: 5}",
	fault.KindCapacity:           "action: {kind: capacity, size: 64KiB, for: 10ms}, match: {skip: 5}",
	fault.KindPowerCut:           "action: {kind: power-cut, power: {tear: '512', damage: garbage}}, match: {skip: 20}, budget: 3",
	fault.KindDisconnect:         "action: {kind: disconnect}, match: {every: 5}, budget: 3",
	fault.KindFlip:               "action: {kind: flip, bits: 100}",
	fault.KindRot:                "action: {kind: rot, bits: 100}, match: {offset: 0}",
	fault.KindStaleRead:          "action: {kind: stale-read}, match: {offset: 0}",
	fault.KindLostWrite:          "action: {kind: lost-write}",
	fault.KindMisdirected:        "action: {kind: misdirected}",
	fault.KindIgnoreFUA:          "action: {kind: ignore-fua}",
	fault.KindLieAboutFlush:      "action: {kind: lie-about-flush}",
	fault.KindLostCompletion:     "action: {kind: lost-completion}, match: {skip: 5}, budget: 1",
	fault.KindDuplicate:          "action: {kind: duplicate}, match: {every: 2}",
	fault.KindMistagged:          "action: {kind: mistagged}, match: {skip: 5}, budget: 1",
	fault.KindLateCompletion:     "action: {kind: late-completion, for: 10ms}, match: {skip: 5}, budget: 1",
	fault.KindDMAAfterReset:      "action: {kind: dma-after-reset, for: 10ms}, match: {skip: 5}, budget: 1",
	fault.KindDMAAfterCompletion: "action: {kind: dma-after-completion, for: 1ms}, match: {every: 2}",
	fault.KindRingFull:           "action: {kind: ring-full, for: 2ms}, match: {every: 5}", // which others may wait for
	fault.KindLostInterrupt:      "action: {kind: lost-interrupt}, match: {skip: 5}, budget: 1",
	fault.KindBadCookie:          "action: {kind: bad-cookie}, match: {every: 5}",
}

// A diskLoad makes commands of every kind about a disk of loadBlocks blocks of 4 KiB.
type diskLoad struct {
	rng *rand.Rand
	// model is what the disk has to have.
	model []byte
}

const loadBlocks, loadBlock = 64, 4096

func newLoad(seed, stream uint64) *diskLoad {
	return &diskLoad{rng: rand.New(rand.NewPCG(seed, stream)), model: make([]byte, loadBlocks*loadBlock)}
}

// next is a command, and what the model's part of it is. The model has changed already.
func (l *diskLoad) next(cookie uint64) (cmd nbdtest.Command, part []byte) {
	at := l.rng.IntN(loadBlocks) * loadBlock
	part = l.model[at : at+loadBlock]
	cmd = nbdtest.Command{Cookie: cookie, Offset: uint64(at), Length: loadBlock}
	switch l.rng.IntN(10) {
	case 0:
		return nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: cookie}, nil
	case 1:
		cmd.Type = nbdtest.CmdWriteZeroes
		clear(part)
	case 2, 3, 4, 5:
		cmd.Type, cmd.Payload = nbdtest.CmdWrite, bytes.Repeat([]byte{byte(1 + l.rng.IntN(255))}, loadBlock)
		cmd.Flags = uint16(l.rng.IntN(2)) * nbdtest.FlagFUA
		copy(part, cmd.Payload)
	default:
		cmd.Type = nbdtest.CmdRead
	}
	return cmd, part
}

// TestFaults_OtherDisksSeeNothing: whatever happens to one disk, a client of another disk
// behind the same adapter, on the same target, gets no error and no wrong byte on its one
// connection; and at the end that disk holds what was written to it, byte for byte.
func TestFaults_OtherDisksSeeNothing(t *testing.T) {
	t.Parallel()
	for _, k := range fault.Kinds() {
		text, ok := sickness[k.Kind]
		if !ok {
			t.Errorf("no rule of kind %s", k.Kind)
			continue
		}
		t.Run(string(k.Kind), func(t *testing.T) {
			t.Parallel()
			s := impatient(t, "sick=memory:256KiB,cache=writeback", "sound=memory:256KiB,cache=writeback")
			s.Hostile = true
			d, _ := s.mustStart(t)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rule := ruleOf(t, fmt.Sprintf("{name: ill, disk: sick, hostile: %v, %s}", k.Hostile, text))
			var over atomic.Bool
			var checked atomic.Int64 // commands of the sound disk
			var wait sync.WaitGroup
			sound, err := nbdtest.NewClient(s.connect(t), "sound")
			if err != nil {
				t.Fatal(err)
			}
			wait.Go(func() {
				l := newLoad(seed, 1)
				for i := uint64(0); !over.Load() || i < 100; i++ {
					cmd, part := l.next(i)
					r, err := sound.Do(cmd)
					if err != nil || r.Errno != nbd.OK || cmd.Type == nbdtest.CmdRead && !bytes.Equal(r.Data, part) {
						t.Errorf("the sound disk, %s: %v, %v, or other data than was written", cmd, r.Errno, err)
						break
					}
					checked.Add(1)
				}
				r, err := sound.Do(nbdtest.Command{Type: nbdtest.CmdRead, Length: loadBlocks * loadBlock})
				if err != nil || r.Errno != nbd.OK || !bytes.Equal(r.Data, l.model) {
					t.Errorf("the sound disk at the end: %v, %v, or other data than was written", r.Errno, err)
				}
			})
			putFaults(t, d, rule)
			suffer(t, s, d, newLoad(seed, 2), max(3, int(rule.Budget)), &checked)
			if err := d.RemoveFault("ill"); err != nil {
				t.Error(err)
			}
			over.Store(true)
			wait.Wait()
			for _, v := range machineOf(d).system.Verifier().Violations() {
				isLate := k.Kind == fault.KindDMAAfterReset || k.Kind == fault.KindDMAAfterCompletion
				if !isLate || v.Check != port.CheckDMA {
					t.Errorf("violation: %s", v)
				}
			}
		})
	}
}

// suffer uses the sick disk until its rule has fired that often, if its budget allows it,
// and both disks have been used for a while. What the sick disk's client gets does not
// matter.
func suffer(t *testing.T, s *settings, d *Daemon, l *diskLoad, times int, others *atomic.Int64) {
	t.Helper()
	var c *nbdtest.Client
	for i := uint64(0); ; i++ {
		if c == nil {
			var err error
			if c, err = nbdtest.NewClient(s.connect(t), "sick"); err != nil {
				if !strings.Contains(err.Error(), "no export") {
					t.Logf("the sick disk: %v", err)
				}
				c = nil
				runtime.Gosched()
			}
		}
		f, err := d.Fault("ill")
		if err != nil {
			t.Error(err)
			return
		}
		enough := int(f.Fired) >= times || f.State == string(fault.StateExhausted)
		if enough && i >= 50 && others.Load() >= 50 || t.Failed() {
			break
		}
		switch f.Rule.Action.Kind {
		case fault.KindResetFails:
			if err := d.ResetDisk("sick", client.ResetLun); err == nil {
				t.Error("a reset that fails works")
			}
		case fault.KindSlowHandshake:
			hangUp(c)
			c = nil
			continue
		default:
		}
		if c == nil {
			continue
		}
		cmd, _ := l.next(i)
		if _, err := c.Do(cmd); err != nil {
			hangUp(c)
			c = nil
		}
	}
	hangUp(c)
}

func hangUp(c *nbdtest.Client) {
	if c != nil {
		_ = c.Conn.Close() // of a server that may have done so
	}
}

// TestFaults_OthersAreFound: a disk of which every command fails, those by which the port
// looks for units among them, hides no other, not even if it is plugged in like that and
// no other lists units either; and plugged in again it is found once it says what it is.
func TestFaults_OthersAreFound(t *testing.T) {
	s := newSettings(t, "dead=memory:1MiB")
	d, _ := s.mustStart(t)
	dead := client.FaultRule{Name: "dead", Disk: "dead", Match: fault.Match{Op: fault.Ops{"any"}}, Action: fault.Action{Kind: fault.KindNotReady}}
	putFaults(t, d, dead)
	if _, err := s.control(t).AddDisk(t.Context(), "new", client.DiskSpec{MemoryBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	c := open(t, s.socket(), "new")
	if _, err := c.do(cmdRead, 0, 512, nil); err != nil {
		t.Error(err)
	}
	if err := d.RemoveFault("dead"); err != nil {
		t.Fatal(err)
	}
	unplug(t, d, open(t, s.socket(), "dead"), "dead")
	mute := client.FaultRule{Name: "mute", Disk: "new", Match: dead.Match, Action: dead.Action}
	putFaults(t, d, dead, mute)
	if err := d.RemoveFault("away"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.control(t).AddDisk(t.Context(), "newer", client.DiskSpec{MemoryBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	dead.Budget = 5 // all that one enumeration asks
	dead.Match.Op = fault.Ops{"inquiry"}
	putFaults(t, d, dead)
	eventually(t, func() string {
		if st, f := d.diskNow("dead"), faultNow(t, d, "dead"); st.State != client.DiskServing || f.Fired != 5 {
			return fmt.Sprintf("the disk is %q after %d failures", st.State, f.Fired)
		}
		return ""
	})
	noViolations(t, machineOf(d))
}

func faultNow(t *testing.T, d *Daemon, name string) client.Fault {
	t.Helper()
	f, err := d.Fault(name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
