package port

import "fmt"

// NotificationType says what a miniport tells the port with Notification.
// Source: storport.h SCSI_NOTIFICATION_TYPE.
type NotificationType uint8

// Notifications. The vendor's notifications that take further arguments
// (RequestTimerCall, QueryTickCount, …) are separate routines here.
const (
	NotifyRequestComplete   NotificationType = iota // Complete
	NotifyResetDetected                             // ResetDetected
	NotifyBusChangeDetected                         // BusChangeDetected
	NotifyLinkUp                                    // LinkUp
	NotifyLinkDown                                  // LinkDown
)

// Notification tells the port that something has happened; each type has a
// routine that does the same. srb is for NotifyRequestComplete and nil
// otherwise. An unknown type is ignored, and reported by the verifier (V19).
//
// Level: any.
// Source: storport.h StorPortNotification.
func (a *Adapter) Notification(p *Processor, t NotificationType, srb *SRB) {
	switch t {
	case NotifyRequestComplete:
		a.Complete(p, srb)
	case NotifyResetDetected:
		a.ResetDetected(p)
	case NotifyBusChangeDetected:
		a.BusChangeDetected(p)
	case NotifyLinkUp:
		a.LinkUp(p)
	case NotifyLinkDown:
		a.LinkDown(p)
	default:
		if p.verify {
			p.violate(CheckNotification, srb, fmt.Sprintf("notification %d: want 0 to %d", t, NotifyLinkDown))
		}
	}
}
