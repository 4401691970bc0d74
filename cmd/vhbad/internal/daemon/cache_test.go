package daemon

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/vhbad/vhbad/internal/scsi"
	"github.com/vhbad/vhbad/port"
)

// Transmission flags of an export.
const (
	flagSendFlush = 1 << 2
	flagSendFUA   = 1 << 3
)

// modePage asks a disk's unit for its caching page, or, if list is not nil, sets it.
func modePage(t *testing.T, m *machine, e *export, list []byte) (wce bool, err error) {
	t.Helper()
	err = m.onProcessor("mode", func(p *port.Processor) error {
		srb, err := m.adapter.NewSRB(p)
		if err != nil {
			return err
		}
		defer m.adapter.FreeSRB(srb)
		data := m.arena.Alloc(4096)
		defer m.arena.Free(data)
		for range 5 { // unit attentions are told first
			srb.Flags, srb.QueueAction = port.FlagQueueActionEnable|port.FlagNoQueueFreeze|port.FlagDataIn, port.SimpleTag
			srb.CDBBytes = uint8(scsi.PutModeSense10(&srb.CDB, scsi.ModePageCaching, true, 64))
			srb.DataBuffer = data[:64]
			if list != nil {
				srb.Flags = srb.Flags&^port.FlagDataIn | port.FlagDataOut
				srb.CDBBytes = uint8(scsi.PutModeSelect10(&srb.CDB, uint16(len(list))))
				srb.DataBuffer = data[:copy(data, list)]
			}
			srb.DataTransferBytes = uint32(len(srb.DataBuffer))
			e.LogicalUnit().Execute(p, srb, nil)
			if srb.Status.Code() != port.StatusError || list != nil {
				break
			}
		}
		if code := srb.Status.Code(); code != port.StatusSuccess && code != port.StatusDataOverrun {
			return fmt.Errorf("%s", srb)
		}
		if list == nil {
			sense, ok := scsi.ParseModeSense10Data(data[:srb.DataTransferBytes])
			if !ok || !sense.CachingPage {
				return fmt.Errorf("mode data % x", data[:srb.DataTransferBytes])
			}
			wce = sense.WriteCache
		}
		return nil
	})
	return wce, err
}

// TestWriteCache: for each kind of disk, with and without our write cache, the unit's
// reports match the volatile cache that there really is, and say whether hosts can switch
// it off. Clients may flush and use FUA in any case.
func TestWriteCache(t *testing.T) {
	for _, tt := range []struct {
		name, spec string
		wce, fixed bool
	}{
		{"memory", "d=memory:1MiB", false, true},
		{"memory, none", "d=memory:1MiB,cache=none", false, true},
		{"memory, writeback", "d=memory:1MiB,cache=writeback", true, false},
		{"file", "d=file:$DIR/i.img,size=1MiB", true, false},
		{"file, none", "d=file:$DIR/i.img,size=1MiB,cache=none", true, false},
		{"file, writeback", "d=file:$DIR/i.img,size=1MiB,cache=writeback", true, false},
	} {
		t.Run(strings.ReplaceAll(tt.name, ", ", "-"), func(t *testing.T) {
			s := newSettings(t, tt.spec)
			d, _ := s.mustStart(t)
			m := machineOf(d)
			e := m.find("d")
			c := open(t, s.socket(), "d")
			usable := func(when string) {
				t.Helper()
				if c := open(t, s.socket(), "d"); c.flags&(flagSendFlush|flagSendFUA) != flagSendFlush|flagSendFUA {
					t.Errorf("%s: flags %#x, want FLUSH and FUA", when, c.flags)
				}
				if err := c.tryWrite(0, bytes.Repeat([]byte{1}, 512)); err != nil {
					t.Errorf("%s: write: %v", when, err)
				}
				if _, err := c.do(cmdFlush, 0, 0, nil); err != nil {
					t.Errorf("%s: flush: %v", when, err)
				}
			}
			want := func(when string, wce bool) {
				t.Helper()
				if got, err := modePage(t, m, e, nil); err != nil || got != wce || e.unit.WriteCache() != wce {
					t.Errorf("%s: WCE %v, %v, want %v", when, got, err, wce)
				}
			}
			usable("at first")
			want("at first", tt.wce)
			list := make([]byte, 8+20)
			list[8], list[9], list[10] = 0x08, 0x12, 0x04
			if _, err := modePage(t, m, e, list); (err != nil) != tt.fixed {
				t.Errorf("setting WCE: %v, want it refused: %v", err, tt.fixed)
			}
			want("after it was set", tt.wce)
			list[10] = 0
			if _, err := modePage(t, m, e, list); err != nil {
				t.Errorf("clearing WCE: %v", err)
			}
			want("after it was cleared", false)
			usable("with WCE clear")
			if e.power.cache != nil {
				if n := e.power.cache.Stats().PendingWrites; n != 0 {
					t.Errorf("with WCE clear %d writes wait in the cache", n)
				}
			}
		})
	}
}
