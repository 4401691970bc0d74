package client

import (
	"context"
	"net/http"

	"github.com/vhbad/vhbad/hba/fault"
)

// FaultRule says which commands meet a fault, and which fault that is. It has the same
// shape in configuration files.
type FaultRule = fault.Rule

// Fault is a rule in force, with its state and counts.
type Fault struct {
	// Rule has its defaults filled in.
	Rule FaultRule `json:"rule"`
	// State is "armed", "waiting" (for its start, mark or another rule), "over" (its
	// time has passed) or "exhausted" (its budget is used up).
	State string `json:"state"`
	// Hostile is whether a correct drive would never do what the rule does.
	Hostile bool `json:"hostile"`
	// Matched counts the commands that matched, before skip, every and probability
	// chose among them.
	Matched uint64 `json:"matched"`
	// Fired counts the commands that met the fault.
	Fired uint64 `json:"fired"`
	// LeftOut counts the late, second and mistagged completions and late transfers
	// for which the device had no room.
	LeftOut uint64 `json:"left_out"`
	// Held is how many commands the rule holds now.
	Held int64 `json:"held"`
}

// Faults are all rules in force, in the order in which they decide.
type Faults struct {
	// HostileAllowed is whether the daemon accepts hostile rules.
	HostileAllowed bool    `json:"hostile_allowed"`
	Faults         []Fault `json:"faults"`
}

// FaultRelease says how many commands a rule is to release.
type FaultRelease struct {
	// Count is the number of commands, the longest held first; zero means all.
	Count int `json:"count,omitempty"`
}

// FaultReleased says how many commands a rule has released.
type FaultReleased struct {
	Released int `json:"released"`
}

// Mark is a named point in time that rules can wait for.
type Mark struct {
	Text string `json:"text"`
}

// MarkSet says how many rules were waiting for a mark.
type MarkSet struct {
	Rules int `json:"rules"`
}

// ResetLevel is the scope of a reset.
type ResetLevel string

// Levels of resets.
const (
	ResetLun    ResetLevel = "lun"    // the disk's logical unit
	ResetTarget ResetLevel = "target" // all units of its target
	ResetBus    ResetLevel = "bus"    // the whole adapter
)

// DiskReset asks for a reset.
type DiskReset struct {
	// Level is "lun", "target" or "bus".
	Level ResetLevel `json:"level"`
}

// Faults returns the rules in force.
//
// Errors: as Status.
func (c *Client) Faults(ctx context.Context) (*Faults, error) {
	out := &Faults{}
	if err := c.get(ctx, "/v1/faults", out); err != nil {
		return nil, err
	}
	return out, nil
}

// Fault returns the rule of that name.
//
// Errors: ErrNotFound.
func (c *Client) Fault(ctx context.Context, name string) (*Fault, error) {
	out := &Fault{}
	if err := c.get(ctx, "/v1/faults/"+segment(name), out); err != nil {
		return nil, err
	}
	return out, nil
}

// PutFault puts a rule into force, replacing any rule of the same name. An identical rule
// that is already in force carries on undisturbed.
//
// Errors: ErrInvalid, which names what is wrong with the rule; ErrConflict if the rule is
// hostile and the daemon takes no such rules.
func (c *Client) PutFault(ctx context.Context, r FaultRule) (*Fault, error) {
	out := &Fault{}
	if err := c.call(ctx, http.MethodPut, "/v1/faults/"+segment(r.Name), &r, out); err != nil {
		return nil, err
	}
	return out, nil
}

// RemoveFault ends a rule. Commands that it holds go on; those that it has lost are
// answered.
//
// Errors: ErrNotFound; ErrConflict if another rule comes after it (Match.AfterRule).
func (c *Client) RemoveFault(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/v1/faults/"+segment(name), nil, nil)
}

// ReleaseFault releases up to count of the commands that the rule holds, the longest held
// first; zero means all. Commands that it catches from then on stay held.
//
// Errors: ErrNotFound.
func (c *Client) ReleaseFault(ctx context.Context, name string, count int) (released int, err error) {
	var out FaultReleased
	err = c.call(ctx, http.MethodPost, "/v1/faults/"+segment(name)+"/release", FaultRelease{Count: count}, &out)
	return out.Released, err
}

// SetMark sets a mark, and returns how many rules were waiting for it.
func (c *Client) SetMark(ctx context.Context, text string) (rules int, err error) {
	var out MarkSet
	err = c.call(ctx, http.MethodPost, "/v1/marks", Mark{Text: text}, &out)
	return out.Rules, err
}

// ResetDisk resets a disk's logical unit, its target or the bus, and waits until the
// reset is done.
//
// Errors: ErrNotFound; ErrConflict if a reset is already under way, or if this one
// failed.
func (c *Client) ResetDisk(ctx context.Context, disk string, level ResetLevel) error {
	return c.call(ctx, http.MethodPost, "/v1/disks/"+segment(disk)+"/reset", DiskReset{Level: level}, nil)
}
