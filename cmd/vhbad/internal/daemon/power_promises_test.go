package daemon

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
)

const ownSectors, sectorSize = 64, 512

// An owner is the only one who writes to some sectors, over one connection after another.
// It knows what each sector may hold: a range of write numbers, from the last one promised
// to be durable to the latest.
type owner struct {
	base uint64 // bytes
	may  [ownSectors][]uint64
	last uint64
}

func numbered(n uint64) []byte {
	return bytes.Repeat(binary.LittleEndian.AppendUint64(nil, n), sectorSize/8)
}

// check reads all sectors, and returns those that hold what they must not. It returns false
// if the power has gone.
func (o *owner) check(c *nbdtest.Client) (wrong []int, ok bool) {
	r, err := c.Do(nbdtest.Command{Type: nbdtest.CmdRead, Offset: o.base, Length: ownSectors * sectorSize})
	if err != nil || r.Errno != nbd.OK {
		return nil, false
	}
	for i := range o.may {
		p := r.Data[i*sectorSize : (i+1)*sectorSize]
		n := binary.LittleEndian.Uint64(p)
		if !slices.Contains(o.may[i], n) || !bytes.Equal(p, numbered(n)) {
			wrong = append(wrong, i)
		}
		o.may[i] = []uint64{n}
	}
	return wrong, true
}

// write writes and flushes until the power goes. It calls done after the n-th command, or
// when it ends before that.
func (o *owner) write(c *nbdtest.Client, rng *rand.Rand, n int, done func()) {
	promised := func(from, to int) {
		for i := from; i < to; i++ {
			o.may[i] = o.may[i][len(o.may[i])-1:]
		}
	}
	var once sync.Once
	defer once.Do(done)
	for k := 0; ; k++ {
		if k == n {
			once.Do(done)
		}
		from, to := 0, ownSectors
		cmd := nbdtest.Command{Type: nbdtest.CmdFlush, Cookie: uint64(k)}
		if rng.IntN(8) != 0 {
			from = rng.IntN(ownSectors - 8)
			to = from + 1 + rng.IntN(8)
			cmd.Type, cmd.Flags = nbdtest.CmdWrite, uint16(rng.IntN(2)*rng.IntN(2))*nbdtest.FlagFUA
			cmd.Offset, cmd.Length = o.base+uint64(from)*sectorSize, uint32(to-from)*sectorSize
			for i := from; i < to; i++ {
				o.last++
				o.may[i] = append(o.may[i], o.last)
				cmd.Payload = append(cmd.Payload, numbered(o.last)...)
			}
		}
		if r, err := c.Do(cmd); err != nil || r.Errno != nbd.OK {
			return
		}
		if cmd.Type == nbdtest.CmdFlush || cmd.Flags != 0 {
			promised(from, to)
		}
	}
}

// TestCutPower_KeepsPromises: after each of many power cuts in the middle of the work of
// several clients, each finds what it was promised, or something newer of its own, and the
// report says that this is legal. If flushes lie, they find that they have been lied to.
func TestCutPower_KeepsPromises(t *testing.T) {
	for _, options := range []string{"cache-eviction=fifo", "cache-eviction=random", "cache-eviction=none", "hostile=lying-flush"} {
		t.Run(options, func(t *testing.T) {
			const users, rounds = 4, 12
			s := newSettings(t, "db=memory:1MiB,cache=writeback,cache-size=64KiB,"+options)
			lies := options == "hostile=lying-flush"
			s.Hostile = lies
			d, _ := s.mustStart(t)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			owners := make([]*owner, users)
			for i := range owners {
				owners[i] = &owner{base: uint64(i) * ownSectors * sectorSize, last: uint64(i) << 32}
				for j := range owners[i].may {
					owners[i].may[j] = []uint64{0}
				}
			}
			var mu sync.Mutex
			var broken []string
			for round := range uint64(rounds) {
				var wait sync.WaitGroup
				half := make(chan struct{}, users)
				for i, o := range owners {
					c, rng := s.speak(t, "db", formats[i%len(formats)]), rand.New(rand.NewPCG(seed, round<<8|uint64(i)))
					wait.Go(func() {
						wrong, ok := o.check(c)
						if len(wrong) > 0 {
							mu.Lock()
							broken = append(broken, fmt.Sprintf("round %d, client %d: sectors %v", round, i, wrong))
							mu.Unlock()
						}
						if !ok {
							half <- struct{}{}
							return
						}
						o.write(c, rng, 30, func() { half <- struct{}{} })
					})
				}
				<-half
				policy := cache.PolicyNames()[int(round)%len(cache.PolicyNames())]
				r, err := d.CutPower("db", client.PowerCutOptions{Seed: &round, Policy: policy, DropConnections: true})
				if err != nil {
					t.Fatal(err)
				}
				if !lies && (r.Class != "legal" || r.ImageClass != "legal") {
					t.Errorf("round %d: class %s, image %s: %v", round, r.Class, r.ImageClass, r.Findings)
				}
				wait.Wait()
			}
			if (len(broken) > 0) != lies {
				t.Errorf("promises that were not kept: %v", broken)
			}
		})
	}
}
