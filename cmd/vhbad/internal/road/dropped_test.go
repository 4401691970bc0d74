package road

import (
	"bytes"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vhbad/vhbad/hba/cache"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/hba/target"
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

// takeAttention has a unit report that its power is back to a client that came first.
func takeAttention(u *target.Unit) {
	u.Execute(&target.Task{CDBBytes: 6}, true) // TEST UNIT READY
}

// TestPowerCut_DroppedWaits: a write that is on its way through the port when the power is
// cut does not reach the medium afterwards, however long it takes, if its client has gone
// with the power. The write of a client who is still there does.
func TestPowerCut_DroppedWaits(t *testing.T) {
	for _, tt := range []struct {
		name string
		// where the write is: it waits for BuildIo, is in there, or waits for StartIo
		waits, builds, built bool
		drop                 bool
	}{
		{name: "waits, client stays", waits: true},
		{name: "waits, client dropped", waits: true, drop: true},
		{name: "is built, client dropped", builds: true, drop: true},
		{name: "built, client dropped", built: true, drop: true},
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
			leave, there := make(chan struct{}), make(chan struct{})
			stay := func(*port.Processor) { close(there); <-leave }
			switch {
			case tt.waits:
				pause(p)
			case tt.built:
				g.built.Store(&pause)
			case tt.builds:
				g.built.Store(&stay)
			}
			a := w.client()
			payload := bytes.Repeat([]byte{7}, 512)
			// The answer to what never reaches the disk says that all before it has.
			if err := a.Send(nbdtest.Command{Type: nbdtest.CmdWrite, Cookie: 1, Length: 512, Payload: payload},
				nbdtest.Command{Type: nbdtest.CmdRead, Cookie: 2, Offset: 1 << 40, Length: 512}); err != nil {
				t.Fatal(err)
			}
			if tt.builds {
				<-there
			} else if r, err := a.Receive(); err != nil || r.Cookie != 2 {
				t.Fatalf("%+v, %v", r, err)
			}
			w.unit.PowerOff()
			w.disk.LostWrites()
			if _, err := c.Cut(cache.CutOptions{Policy: cache.PolicyNone}); err != nil {
				t.Fatal(err)
			}
			var dropped nbd.Dropped
			if tt.drop {
				dropped = w.server.Drop("disk0")
				w.nexus.Store(2)
				w.unit.LoseNexus(2)
			}
			w.unit.PowerOn()
			takeAttention(w.unit)
			g.built.Store(nil)
			close(leave)
			w.adapter.ResumeDevice(p, 0, 0, 0)
			want := make([]byte, 512)
			if !tt.drop {
				want = payload
				if r, err := a.Receive(); err != nil || r.Errno != nbd.OK {
					t.Errorf("the write of who stays: %+v, %v", r, err)
				}
			}
			if err := dropped.Wait(t.Context()); err != nil {
				t.Error(err)
			}
			if r := do(t, w.client(), nbdtest.Command{Type: nbdtest.CmdRead, Length: 512}); r.Errno != nbd.OK || !bytes.Equal(r.Data, want) {
				t.Errorf("on the medium: %v and %d, want %d", r.Errno, r.Data[0], want[0])
			}
		})
	}
}

// A dropFirst device has a function called before it gets the first requests.
type dropFirst struct {
	nbd.Device
	drop func()
	once sync.Once
}

func (d *dropFirst) Open(c *nbd.Conn) (nbd.Session, error) {
	s, err := d.Device.Open(c)
	return &dropFirstSession{s, d}, err
}

type dropFirstSession struct {
	nbd.Session
	d *dropFirst
}

func (s *dropFirstSession) Submit(requests []*nbd.Request) {
	s.d.once.Do(s.d.drop)
	s.Session.Submit(requests)
}

// TestPowerCut_DroppedBeforeItBegins: a write that has been received, and that its
// connection's goroutine has not begun when the power is back, is not done.
func TestPowerCut_DroppedBeforeItBegins(t *testing.T) {
	var w *road
	var dropped nbd.Dropped
	built, gone := make(chan struct{}), make(chan struct{})
	w = newRoad(t, shape{queues: 2, sizeBytes: 1 << 20, device: func(d nbd.Device) nbd.Device {
		return &dropFirst{Device: d, drop: func() {
			<-built
			w.unit.PowerOff()
			dropped = w.server.Drop("disk0")
			w.nexus.Store(2)
			w.unit.LoseNexus(2)
			w.unit.PowerOn()
			takeAttention(w.unit)
			close(gone)
		}}
	}})
	close(built)
	a := w.client()
	if err := a.Send(nbdtest.Command{Type: nbdtest.CmdWrite, Length: 512, Payload: bytes.Repeat([]byte{7}, 512)}); err != nil {
		t.Fatal(err)
	}
	<-gone
	if err := dropped.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if r := do(t, w.client(), nbdtest.Command{Type: nbdtest.CmdRead, Length: 512}); r.Errno != nbd.OK || r.Data[0] != 0 {
		t.Errorf("on the medium: %v and %d, want zeros", r.Errno, r.Data[0])
	}
}
