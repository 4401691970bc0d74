package road

import (
	"bytes"
	"sync/atomic"
	"testing"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/miniport"
	"github.com/vhbad/vhbad/nbd"
	"github.com/vhbad/vhbad/nbd/nbdtest"
	"github.com/vhbad/vhbad/port"
)

// gateAfterBuild is a miniport that calls built after each BuildIo of a write.
type gateAfterBuild struct {
	*miniport.Driver
	built atomic.Pointer[func(p *port.Processor)]
}

func (g *gateAfterBuild) BuildIo(p *port.Processor, srb *port.SRB) bool {
	ok := g.Driver.BuildIo(p, srb)
	if built := g.built.Load(); built != nil && scsi.Opcode(srb.CDB[0]) == scsi.OpWrite16 {
		(*built)(p)
	}
	return ok
}

// TestPowerCut_DroppedWaits: a write that waits in the port while the power is cut, and
// whose client has gone with it, does not reach the medium afterwards, as that of a
// client who is still there does.
func TestPowerCut_DroppedWaits(t *testing.T) {
	for _, tt := range []struct {
		name        string
		built, drop bool
	}{
		{"waits, client stays", false, false},
		{"waits, client dropped", false, true},
		{"built, client dropped", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var c *cache.Cache
			var g *gateAfterBuild
			w := newRoad(t, shape{
				queues: 2, sizeBytes: 1 << 20,
				medium: func(m *media.Memory) media.Media {
					var err error
					if c, err = cache.New(m, cache.Config{}); err != nil {
						t.Fatal(err)
					}
					return c
				},
				miniport: func(d *miniport.Driver) port.Miniport { g = &gateAfterBuild{Driver: d}; return g },
			})
			p, err := w.system.NewProcessor("test")
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			pause := func(p *port.Processor) { w.adapter.PauseDevice(p, 0, 0, 0, 3600) }
			if tt.built {
				g.built.Store(&pause)
			} else {
				pause(p)
			}
			a := w.client()
			payload := bytes.Repeat([]byte{7}, 512)
			// The answer to what never reaches the disk says that all before it has.
			if err := a.Send(nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: 1, Length: 512, Payload: payload},
				nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 2, Offset: 1 << 40, Length: 512}); err != nil {
				t.Fatal(err)
			}
			if r, err := a.Receive(); err != nil || r.Cookie != 2 {
				t.Fatalf("%+v, %v", r, err)
			}
			w.unit.PowerOff()
			w.disk.LostWrites()
			if _, err := c.Cut(cache.CutOptions{Policy: cache.PolicyNone}); err != nil {
				t.Fatal(err)
			}
			if tt.drop {
				dropped := w.server.Drop("disk0")
				left := w.disk.EndUnwanted(p)
				if want := map[bool]int{true: 1, false: 0}[tt.built]; left != want {
					t.Errorf("%d commands are on the way to the HBA, want %d", left, want)
				}
				if tt.built { // it must go down, and meets a unit without power
					w.adapter.ResumeDevice(p, 0, 0, 0)
				}
				if err := dropped.Wait(t.Context()); err != nil {
					t.Error(err)
				}
				if left := w.disk.EndUnwanted(p); left != 0 {
					t.Errorf("%d commands are on the way to the HBA in the end", left)
				}
			}
			w.unit.PowerOn()
			w.adapter.ResumeDevice(p, 0, 0, 0)
			want := make([]byte, 512)
			if !tt.drop {
				want = payload
				if r, err := a.Receive(); err != nil || r.Errno != nbd.OK {
					t.Errorf("the write of who stays: %+v, %v", r, err)
				}
			}
			if r := do(t, w.client(), nbdtest.Command{Type: nbdtest.CmdRead, Length: 512}); r.Errno != nbd.OK || !bytes.Equal(r.Data, want) {
				t.Errorf("on the medium: %v and %d, want %d", r.Errno, r.Data[0], want[0])
			}
		})
	}
}
