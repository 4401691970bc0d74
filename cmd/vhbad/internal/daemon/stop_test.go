package daemon

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/vhbad/vhbad/client"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/hba/media"
	"github.com/vhbad/vhbad/port"
)

// stuckMedium answers no flush before release is closed.
type stuckMedium struct {
	media.Media
	entered chan struct{} // gets one for each flush
	release chan struct{}
}

func (m *stuckMedium) Flush() error {
	m.entered <- struct{}{}
	<-m.release
	return m.Media.Flush()
}

// A medium that never answers does not keep the daemon from stopping: when the time is up,
// Stop says what is stuck. Control sockets are gone in any case.
func TestStop_MediumHangs(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before func(t *testing.T, s *settings, m *stuckMedium)
	}{
		{"in the last flush", func(*testing.T, *settings, *stuckMedium) {}},
		{"in a client's flush", func(t *testing.T, s *settings, m *stuckMedium) {
			t.Helper()
			request := binary.BigEndian.AppendUint32(nil, 0x25609513)
			request = binary.BigEndian.AppendUint32(request, cmdFlush)
			open(t, s.socket(), "").write(append(request, make([]byte, 20)...)) // no reply will come
			<-m.entered
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSettings(t, "d=memory:1MiB")
			c, err := s.Resolve(client.DefaultPath(), false)
			if err != nil {
				t.Fatal(err)
			}
			memory, err := media.NewMemory(media.MemoryConfig{SizeBytes: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			m := &stuckMedium{Media: memory, entered: make(chan struct{}, 8), release: make(chan struct{})}
			t.Cleanup(func() { close(m.release) })
			d, err := Start(t.Context(), Options{
				Config: c, Log: slog.New(slog.DiscardHandler), HoldLimit: time.Minute,
				OpenMedium: func(*config.Disk) (media.Media, error) { return m, nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			tt.before(t, s, m)
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			err = d.Stop(ctx)
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, port.ErrOutstanding) || !strings.Contains(err.Error(), "EXECUTE_SCSI [0:0:0] cdb 91") {
				t.Errorf("Stop: %v; want context.DeadlineExceeded, port.ErrOutstanding and the SYNCHRONIZE CACHE", err)
			}
			if left := s.sockets(t); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
			if err := d.Stop(t.Context()); err != nil {
				t.Errorf("second Stop: %v", err)
			}
		})
	}
}
