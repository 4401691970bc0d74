package port

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// One at a time stops, restarts or removes an adapter.

// While a stop waits for what is outstanding, no Restart opens the gate again, and a
// Remove waits with it.
func TestStop_UnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{model: FullDuplex}
		b := newBench(t, d, AdapterOptions{})
		done := &finished{}
		held, late := b.srb(done), b.srb(done)
		b.lu.Submit(b.p, []*SRB{held})
		stopped, removed := make(chan error), make(chan error)
		p, q := b.processor("stop"), b.processor("remove")
		go func() { stopped <- b.a.Stop(p) }()
		synctest.Wait()
		if err := b.a.Restart(b.p); err == nil {
			t.Error("Restart while a stop waits: no error")
		}
		if err := b.a.Stop(b.p); !errors.Is(err, ErrAdapterStopped) {
			t.Errorf("Stop while a stop waits: %v, want ErrAdapterStopped", err)
		}
		b.lu.Submit(b.p, []*SRB{late})
		go func() { removed <- b.a.RemoveContext(t.Context(), q) }()
		synctest.Wait()
		select {
		case err := <-removed:
			t.Fatalf("RemoveContext: %v, with an SRB outstanding", err)
		default:
		}
		for _, s := range d.take() {
			d.complete(b.p, s)
		}
		if err := <-stopped; err != nil {
			t.Errorf("Stop: %v", err)
		}
		if err := <-removed; err != nil {
			t.Errorf("RemoveContext: %v", err)
		}
		if n := len(done.list()); n != 2 || held.Status != StatusSuccess || late.Status != StatusNoDevice {
			t.Errorf("%d completions: %s, %s", n, held, late)
		}
		b.a.FreeSRB(held)
		b.a.FreeSRB(late)
		if n := b.sys.iommu.WindowsInUse(); n != 0 {
			t.Errorf("%d IOMMU windows left", n)
		}
		b.wantNoViolations()
	})
}

// However many stop and restart it, each stop and restart is complete.
func TestStop_Many(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	stops, restarts := 0, 0
	for range 4 {
		p := b.processor("operator")
		wg.Go(func() {
			for range 2000 {
				stopped := b.a.Stop(p) == nil
				restarted := b.a.Restart(p) == nil
				mu.Lock()
				if stopped {
					stops++
				}
				if restarted {
					restarts++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if b.a.state.Load() == adapterStopped {
		restarts++
		if err := b.a.Restart(b.p); err != nil {
			t.Error(err)
		}
	}
	if stops == 0 || stops != restarts {
		t.Errorf("%d stops, %d restarts; want as many of each", stops, restarts)
	}
	b.wantNoViolations()
}

// heldLog keeps whoever logs a message until the channel is closed.
type heldLog struct {
	slog.Handler
	message string
	until   chan struct{}
}

func (h heldLog) Enabled(context.Context, slog.Level) bool { return true }
func (h heldLog) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h heldLog) WithGroup(string) slog.Handler            { return h }

func (h heldLog) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, h.message) {
		<-h.until
	}
	return nil
}

// An adapter that fails while a stop flushes its units is removed only after that stop
// has ended, as the stop uses memory that Remove frees.
func TestRemove_FailedUnderStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := heldLog{slog.DiscardHandler, "may not be flushed", make(chan struct{})}
		d := &driver{model: FullDuplex, features: func(c *Config) { c.CachesData = true }}
		d.resetBus = func(p *Processor, _ uint8) bool {
			for _, srb := range d.take() {
				srb.Status = StatusBusReset
				d.a.Complete(p, srb)
			}
			return true
		}
		b := newBenchIn(t, d, AdapterOptions{}, SystemConfig{Log: slog.New(h)})
		b.a.unitAt(0, 0, 1)
		stopped, removed := make(chan error, 1), make(chan error, 1)
		p, q := b.processor("stop"), b.processor("remove")
		go func() { stopped <- b.a.Stop(p) }()
		synctest.Wait() // FLUSH of unit 0 is at the miniport
		b.a.MarkDeviceFailed(b.p, wildcard, wildcard, wildcard, "smoke")
		synctest.Wait()
		go func() { removed <- b.a.RemoveContext(t.Context(), q) }()
		time.Sleep(time.Minute) // the FLUSH is given up; the stop is between two units
		if len(stopped)+len(removed) != 0 {
			t.Error("Remove did not wait for the stop")
		}
		close(h.until)
		synctest.Wait()
		if err := <-removed; err != nil {
			t.Errorf("RemoveContext: %v", err)
		}
		if err := <-stopped; err == nil {
			t.Error("Stop of an adapter that failed meanwhile: no error")
		}
	})
}

// A stop whose adapter goes, or fails, while its FLUSH is out, or whose FLUSH hangs, does
// not stop the miniport: a reset brings the FLUSH back before the memory goes. An adapter
// that has failed is not waited for.
func TestStop_EndsDuringFlush(t *testing.T) {
	for name, end := range map[string]func(b *bench, stopped chan error) error{
		"gone": func(b *bench, _ chan error) error { return b.a.SurpriseRemove(b.p) },
		"failed": func(b *bench, stopped chan error) error {
			start := time.Now()
			b.a.MarkDeviceFailed(b.p, wildcard, wildcard, wildcard, "smoke")
			stopped <- <-stopped // it has given the FLUSH up
			if d := time.Since(start); d != 0 {
				b.t.Errorf("Stop took %s to notice", d)
			}
			return b.a.RemoveContext(b.t.Context(), b.p)
		},
		"hangs": func(b *bench, stopped chan error) error {
			err := <-stopped // it has been taken away
			if !errors.Is(err, errNoAnswer) || !strings.Contains(err.Error(), "FLUSH") {
				b.t.Errorf("Stop: %v, want errNoAnswer, and the FLUSH named", err)
			}
			stopped <- ErrAdapterStopped
			return b.a.RemoveContext(b.t.Context(), b.p)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &driver{model: FullDuplex, features: func(c *Config) { c.CachesData = true }}
				b := newBench(t, d, AdapterOptions{})
				d.control = func(_ *Processor, c ControlType) {
					if c == ControlStopAdapter {
						t.Error("the miniport was stopped")
					}
				}
				reset := false
				d.resetBus = func(p *Processor, _ uint8) bool {
					for _, srb := range d.take() {
						reset = true
						srb.Status = StatusBusReset
						d.a.Complete(p, srb)
					}
					return true
				}
				stopped := make(chan error, 1)
				p := b.processor("stop")
				go func() { stopped <- b.a.Stop(p) }()
				synctest.Wait() // FLUSH is at the miniport
				if err := end(b, stopped); err != nil {
					t.Error(err)
				}
				if err := <-stopped; !errors.Is(err, ErrAdapterStopped) {
					t.Errorf("Stop: %v, want ErrAdapterStopped", err)
				}
				if n := b.sys.iommu.WindowsInUse(); n != 0 || !reset && name != "gone" {
					t.Errorf("%d IOMMU windows left, reset %t", n, reset)
				}
				b.wantNoViolations()
			})
		})
	}
}

// Remove is as patient as its context, but never frees memory that a stop uses, nor
// starts what that stop has stopped: it resets no bus.
func TestRemove_ShortOfTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{model: FullDuplex}
		var events []string
		d.control = func(_ *Processor, c ControlType) {
			if c == ControlStopAdapter {
				time.Sleep(5 * time.Second)
				events = append(events, "stopped")
			}
		}
		d.resetBus = func(*Processor, uint8) bool { events = append(events, "reset"); return true }
		b := newBench(t, d, AdapterOptions{})
		p := b.processor("stop")
		stopped := make(chan error, 1)
		go func() { stopped <- b.a.Stop(p) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.a.RemoveContext(ctx, b.p); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("RemoveContext: %v, want context.DeadlineExceeded", err)
		}
		if err := <-stopped; !errors.Is(err, ErrAdapterStopped) {
			t.Errorf("Stop: %v, want ErrAdapterStopped: it was removed meanwhile", err)
		}
		if !slices.Equal(events, []string{"stopped"}) || b.a.state.Load() != adapterRemoved {
			t.Errorf("%v, state %d; want the adapter stopped, and removed", events, b.a.state.Load())
		}
	})
}

// Remove waits for a Restart and stops what that has started.
func TestRemove_BesideRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{model: FullDuplex}
		var events []ControlType
		d.control = func(_ *Processor, c ControlType) {
			if c == ControlRestartAdapter {
				time.Sleep(5 * time.Second)
			}
			events = append(events, c)
		}
		b := newBench(t, d, AdapterOptions{})
		events = nil
		if err := b.a.Stop(b.p); err != nil {
			t.Fatal(err)
		}
		p := b.processor("restart")
		restarted := make(chan error, 1)
		go func() { restarted <- b.a.Restart(p) }()
		synctest.Wait()
		if err := b.a.RemoveContext(t.Context(), b.p); err != nil {
			t.Errorf("RemoveContext: %v", err)
		}
		if err := <-restarted; err != nil {
			t.Errorf("Restart: %v", err)
		}
		if want := []ControlType{ControlStopAdapter, ControlRestartAdapter, ControlStopAdapter}; !slices.Equal(events, want) {
			t.Errorf("the miniport got %v, want %v", events, want)
		}
	})
}

// A Remove of an adapter that another call is ending reports that its memory is in use.
func TestRemove_BesideAnotherEnd(t *testing.T) {
	for name, end := range map[string]func(a *Adapter, p *Processor) error{"stop": (*Adapter).Stop, "surprise": (*Adapter).SurpriseRemove} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &driver{model: FullDuplex}
				b := newBench(t, d, AdapterOptions{})
				b.lu.Submit(b.p, []*SRB{b.srb(&finished{})})
				p := b.processor("other")
				ended := make(chan error, 1)
				go func() { ended <- end(b.a, p) }()
				synctest.Wait()
				if err := b.a.RemoveContext(t.Context(), b.p); !errors.Is(err, ErrOutstanding) {
					t.Errorf("RemoveContext: %v, want ErrOutstanding", err)
				}
				if err := <-ended; !errors.Is(err, ErrOutstanding) {
					t.Errorf("%s: %v, want ErrOutstanding", name, err)
				}
				for _, srb := range d.take() { // better late than never
					d.complete(b.p, srb)
				}
				b.a.release()
			})
		})
	}
}

// Nothing that has ended is waited for, whether there is time or not.
func TestRemove_UsersOver(t *testing.T) {
	b := newBench(t, &driver{model: FullDuplex}, AdapterOptions{})
	for _, v := range []*service{b.a.worker, b.a.enumerator} {
		v.stop()
	}
	b.a.options.StopTimeout = -1
	for range 100 { // it would be by chance
		if err := b.a.waitUsers(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	b.a.options.StopTimeout = time.Minute
}

// A bus change that comes to the worker when the adapter is being stopped is no error.
func TestBusChange_Stopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		b := newBenchIn(t, &driver{model: FullDuplex}, AdapterOptions{}, SystemConfig{Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err := b.a.Stop(b.p); err != nil {
			t.Fatal(err)
		}
		b.a.BusChangeDetected(b.p)
		synctest.Wait()
		if log.Len() != 0 {
			t.Errorf("logged: %s", &log)
		}
	})
}
