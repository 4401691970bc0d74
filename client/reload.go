package client

import (
	"context"
	"net/http"
)

// Reload says what a reload changed: the answer to POST /v1/reload. Empty lists are absent.
type Reload struct {
	DisksAdded   []string `json:"disks_added,omitempty"`
	DisksRemoved []string `json:"disks_removed,omitempty"`
	// DisksChanged are the disks whose configuration is different now.
	DisksChanged     []string `json:"disks_changed,omitempty"`
	ListenersAdded   []string `json:"listeners_added,omitempty"`
	ListenersRemoved []string `json:"listeners_removed,omitempty"`
	// Warnings report what went wrong with disks that were removed, and faults that do
	// not fit their disks.
	Warnings []string `json:"warnings,omitempty"`
}

// Reload has the daemon read its configuration again. It returns once the new
// configuration is in force and everything it removed is gone.
//
// Errors: ErrInvalid if the file is wrong, ErrConflict if it changes something that
// cannot change while the daemon runs, ErrInternal if something cannot be opened. On an
// error nothing has changed.
func (c *Client) Reload(ctx context.Context) (*Reload, error) {
	r := &Reload{}
	if err := c.call(ctx, http.MethodPost, "/v1/reload", nil, r); err != nil {
		return nil, err
	}
	return r, nil
}
