package port

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// IoTargetRequestServiceTime reports how long the device itself took for srb.
// The owner finds it in SRB.ServiceTime.
//
// Level: any; before Complete.
// Source: storport.h StorPortNotification(IoTargetRequestServiceTime).
func (a *Adapter) IoTargetRequestServiceTime(_ *Processor, srb *SRB, d time.Duration) {
	srb.ServiceTime = d
}

// BufferOverrunDetected says that the miniport has found memory corrupted. It logs and
// panics, where the vendor's routine stops the machine.
//
// Level: any.
// Source: storport.h StorPortNotification(BufferOverrunDetected).
func (a *Adapter) BufferOverrunDetected(p *Processor) {
	a.sys.log.Error("buffer overrun detected", "adapter", a.options.Name, "callback", p.callback.String())
	panic(fmt.Sprintf("port: %s: the miniport detected a buffer overrun in %s", a.options.Name, p.callback))
}

// CompleteRequest completes nothing. The vendor's routine completes all SRBs of a
// unit, a target or a bus, even those that the hardware is still working on and
// whose memory it may still write. The verifier reports the call; a miniport
// must complete each SRB when the hardware is done with it.
//
// Level: any.
// Source: storport.h StorPortCompleteRequest.
func (a *Adapter) CompleteRequest(p *Processor, path, target, lun uint8, status Status) {
	what := fmt.Sprintf("CompleteRequest of [%d:%d:%d] with %s: SRBs may still be with the hardware", path, target, lun, status)
	if p.verify {
		p.violate(CheckCallingPlace, nil, what)
		return
	}
	a.sys.log.Error("refused", "adapter", a.options.Name, "reason", what)
}

// UpdateAdapterMaxIO changes Config.MaxNumberOfIO after FindAdapter, and lowers
// MaxIOsPerLun and InitialLunQueueDepth to it.
//
// In Initialize or PassiveInitialize. Errors: wrong place, n below 1.
// Source: storport.h StorPortUpdateAdapterMaxIO.
func (a *Adapter) UpdateAdapterMaxIO(p *Processor, n int) error {
	if !p.check(routineUpdateAdapterMaxIO) {
		return fmt.Errorf("port: UpdateAdapterMaxIO called from %s, want Initialize or PassiveInitialize", p.callback)
	}
	if n < 1 {
		return fmt.Errorf("port: UpdateAdapterMaxIO of %d: want at least 1", n)
	}
	c := &a.config
	c.MaxNumberOfIO = n
	c.MaxIOsPerLun = min(c.MaxIOsPerLun, n)
	c.InitialLunQueueDepth = min(c.InitialLunQueueDepth, n)
	return nil
}

// RequestInfo is what GetRequestInfo returns.
// Source: storport.h STOR_REQUEST_INFO.
type RequestInfo struct {
	Priority Priority
}

// GetRequestInfo returns what is known of an SRB's originator.
//
// Level: any.
// Source: storport.h StorPortGetRequestInfo.
func (a *Adapter) GetRequestInfo(_ *Processor, srb *SRB) RequestInfo {
	return RequestInfo{Priority: srb.Priority}
}

// GetMessageInterruptIDFromProcessorIndex returns the message for completions of a
// processor's SRBs, which is that of the channel that they take; 0 without messages.
//
// Level: any.
// Source: storport.h StorPortGetMessageInterruptIDFromProcessorIndex.
func (a *Adapter) GetMessageInterruptIDFromProcessorIndex(_ *Processor, processorNumber int) uint16 {
	if processorNumber < 0 {
		panic(fmt.Sprintf("port: message of processor %d", processorNumber))
	}
	return a.messageOfChannel(processorNumber % max(1, len(a.channelLocks)))
}

// messageOfChannel is the message best raised for a channel's completions.
func (a *Adapter) messageOfChannel(channel int) uint16 {
	if a.perf.Flags&PerfInterruptMessageRanges == 0 {
		return 0
	}
	first, last := int(a.perf.FirstRedirectionMessageNumber), int(a.perf.LastRedirectionMessageNumber)
	return uint16(first + channel%(last-first+1))
}

// LogSystemEvent writes a structured event to the log.
//
// Level: up to Dispatch.
// Source: storport.h StorPortLogSystemEvent.
func (a *Adapter) LogSystemEvent(p *Processor, level slog.Level, message string, attrs ...slog.Attr) {
	p.check(routineLogSystemEvent)
	a.log(p, level, message, attrs)
}

// DebugPrint writes a debug message to the log, if that level is enabled.
//
// Level: any.
// Source: storport.h StorPortDebugPrint.
func (a *Adapter) DebugPrint(p *Processor, message string, attrs ...slog.Attr) {
	if a.sys.log.Enabled(context.Background(), slog.LevelDebug) {
		a.log(p, slog.LevelDebug, message, attrs)
	}
}

func (a *Adapter) log(p *Processor, level slog.Level, message string, attrs []slog.Attr) {
	attrs = append([]slog.Attr{slog.String("adapter", a.options.Name), slog.String("callback", p.callback.String())}, attrs...)
	a.sys.log.LogAttrs(context.Background(), level, message, attrs...)
}
