package client

import "time"

// Status is what a daemon says about itself: the body of GET /v1/status.
type Status struct {
	Version   string    `json:"version"`
	PID       int       `json:"pid"`
	StartedAt time.Time `json:"started_at"`
	// UptimeSeconds is the time since StartedAt by a monotonic clock.
	UptimeSeconds float64 `json:"uptime_seconds"`
	// State is "starting", "ready" or "draining".
	State string `json:"state"`
	// Listeners are the addresses being served, as URIs.
	Listeners []string `json:"listeners"`
	// HTTP is the address of metrics and health, empty if switched off.
	HTTP string `json:"http,omitempty"`
	// Configuration says which configuration is in force.
	Configuration Configuration `json:"configuration"`
	// TLS is absent if it is off.
	TLS         *TLS         `json:"tls,omitempty"`
	Disks       []Disk       `json:"disks"`
	Connections []Connection `json:"connections"`
	Adapter     Adapter      `json:"adapter"`
	Memory      Memory       `json:"memory"`
}

// Configuration says which configuration is in force.
type Configuration struct {
	// LoadedAt is when the configuration was read.
	LoadedAt time.Time `json:"loaded_at"`
	// ReloadError is why the last reload failed, absent if it did not.
	ReloadError string `json:"reload_error,omitempty"`
}

// TLS says whether clients may or must use TLS.
type TLS struct {
	// Mode is "optional" or "required".
	Mode string `json:"mode"`
	// VerifyPeer is whether clients need a certificate.
	VerifyPeer bool `json:"verify_peer,omitempty"`
	// NotAfter is when the server's certificate expires.
	NotAfter time.Time `json:"not_after"`
}

// Disk is one disk and its export.
type Disk struct {
	Name string `json:"name"`
	// Default is set for the disk behind the empty export name.
	Default     bool       `json:"default,omitempty"`
	State       DiskState  `json:"state"`
	Origin      DiskOrigin `json:"origin"`
	Description string     `json:"description,omitempty"`
	// Backend is the kind of medium: "memory" or "file".
	Backend string `json:"backend"`
	// Path is the path of the file, if there is one.
	Path      string `json:"path,omitempty"`
	SizeBytes uint64 `json:"size_bytes"`
	// BlockBytes is the logical block size.
	BlockBytes uint32 `json:"block_bytes"`
	ReadOnly   bool   `json:"read_only,omitempty"`
	// Address is bus, target and unit, as in "0:0:3".
	Address string `json:"address"`
	// Hidden keeps the disk out of the list of exports.
	Hidden bool `json:"hidden,omitempty"`
	// TLSOnly reserves the disk for clients that use TLS.
	TLSOnly bool `json:"tls_only,omitempty"`
	// Allow, unless empty, reserves the disk for clients with one of these names in
	// their certificate.
	Allow []string `json:"allow,omitempty"`
	// MaxConnections is the export's own limit, absent if it has none.
	MaxConnections int `json:"max_connections,omitempty"`
	// Connections is how many clients have the export open.
	Connections int `json:"connections"`
	// Depth is how many commands the unit takes at once.
	Depth int `json:"depth"`
	// Outstanding is how many commands the unit has now.
	Outstanding int `json:"outstanding"`
	// Queued is how many commands wait for the unit.
	Queued int `json:"queued"`
	// Operations has an entry for each kind of request.
	Operations []Operation `json:"operations"`
}

// Operation counts one kind of request of one disk.
type Operation struct {
	// Op is "read", "write", "flush", "trim", "write_zeroes", "cache" or
	// "block_status".
	Op       string `json:"op"`
	Requests uint64 `json:"requests"`
	Errors   uint64 `json:"errors"`
	Bytes    uint64 `json:"bytes"`
	InFlight int64  `json:"in_flight"`
	// MeanSeconds is the mean time from parsing a request to its reply, zero
	// without requests.
	MeanSeconds float64 `json:"mean_seconds"`
}

// Connection is one client.
type Connection struct {
	ID uint64 `json:"id"`
	// Remote is the peer's address; empty for most unix sockets.
	Remote string `json:"remote"`
	// Number identifies the connection on its disk in fault rules, 1 to 63; zero if it
	// has none.
	Number int `json:"number,omitempty"`
	// Export is the disk in use, empty during negotiation.
	Export string `json:"export"`
	// State is "negotiating" or "transmitting".
	State    string    `json:"state"`
	Since    time.Time `json:"since"`
	InFlight int       `json:"in_flight"`
	// TLS is the version and cipher suite, empty in plain text and during
	// negotiation.
	TLS string `json:"tls,omitempty"`
	// Replies is "simple", "structured" or "extended"; empty during negotiation.
	Replies       string `json:"replies,omitempty"`
	ReceivedBytes uint64 `json:"received_bytes"`
	SentBytes     uint64 `json:"sent_bytes"`
}

// Adapter is the host bus adapter.
type Adapter struct {
	Synchronization string `json:"synchronization"`
	// Interrupts says how messages exclude each other: "a lock per message", "one lock
	// for all messages", "one message for all queues" or "line".
	Interrupts string  `json:"interrupts"`
	Queues     []Queue `json:"queues"`
	Resets     uint64  `json:"resets"`
	Timeouts   uint64  `json:"timeouts"`
	DMAFaults  uint64  `json:"dma_faults"`
	// Verify is whether the verifier runs.
	Verify bool `json:"verify"`
	// Violations is how many breaches the verifier has found.
	Violations uint64 `json:"violations"`
}

// Queue is one queue pair of the adapter.
type Queue struct {
	Queue       int    `json:"queue"`
	Commands    uint64 `json:"commands"`
	Completions uint64 `json:"completions"`
	Interrupts  uint64 `json:"interrupts"`
	Doorbells   uint64 `json:"doorbells"`
	InFlight    int    `json:"in_flight"`
}

// Memory is the arena that buffers come from.
type Memory struct {
	SizeBytes  int `json:"size_bytes"`
	InUseBytes int `json:"in_use_bytes"`
	PeakBytes  int `json:"peak_bytes"`
	// Waiters is how many requests wait for memory.
	Waiters int `json:"waiters"`
}

// HandOver is the body of POST /v1/handover, with which a daemon asks to replace another.
type HandOver struct {
	// DiscardMemory accepts that the content of memory disks is lost.
	DiscardMemory bool `json:"discard_memory,omitempty"`
}
