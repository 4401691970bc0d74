package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// pollInterval is how often sysfs, which does not announce changes, is read.
const pollInterval = 5 * time.Millisecond

// sectorBytes is the unit of /sys/block/*/size, whatever the block size.
const sectorBytes = 512

// sysfs reads the state of nbd devices.
type sysfs struct {
	block string // normally /sys/block
	dev   string // normally /dev
}

// deviceState is what is known of one device.
type deviceState struct {
	// exists is false for a device that was never made.
	exists bool
	// pid is the process that attached it, 0 if none.
	pid       int
	sizeBytes uint64
	inFlight  bool
	holders   []string
	// backend is the identifier given when it was attached; also empty on kernels before
	// 5.14.
	backend string
	// blockBytes is the logical block.
	blockBytes uint32
	readOnly   bool
	// node says whether its file in /dev exists.
	node bool
}

// free reports whether nothing of an earlier user is left.
func (s *deviceState) free() bool {
	return s.pid == 0 && s.sizeBytes == 0 && !s.inFlight && len(s.holders) == 0
}

// usable reports whether the device can be opened and read.
func (s *deviceState) usable() bool { return s.pid != 0 && s.sizeBytes != 0 && s.node }

// String returns what keeps a device from being free or usable.
func (s *deviceState) String() string {
	var parts []string
	if s.pid != 0 {
		parts = append(parts, fmt.Sprintf("attached by process %d", s.pid))
	} else {
		parts = append(parts, "not attached")
	}
	parts = append(parts, fmt.Sprintf("%d bytes", s.sizeBytes))
	if s.inFlight {
		parts = append(parts, "requests in flight")
	}
	if len(s.holders) > 0 {
		parts = append(parts, "held by "+strings.Join(s.holders, " "))
	}
	if !s.node {
		parts = append(parts, "no file in /dev")
	}
	return strings.Join(parts, ", ")
}

func deviceName(index int) string { return "nbd" + strconv.Itoa(index) }

func (s *sysfs) path(index int) string { return filepath.Join(s.dev, deviceName(index)) }

// index returns the number of "/dev/nbd7" or "nbd7".
func (s *sysfs) index(device string) (int, error) {
	name := strings.TrimPrefix(device, s.dev+"/")
	digits, ok := strings.CutPrefix(name, "nbd")
	n, err := strconv.ParseUint(digits, 10, 20)
	if !ok || err != nil || deviceName(int(n)) != name {
		return 0, fmt.Errorf("device %q: want /dev/nbd0, /dev/nbd1 and so on", device)
	}
	return int(n), nil
}

// indices lists the devices there are, in order.
func (s *sysfs) indices() ([]int, error) {
	entries, err := os.ReadDir(s.block)
	if err != nil {
		return nil, err
	}
	var out []int
	for _, e := range entries {
		if n, err := s.index(e.Name()); err == nil {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

// state reads one device. A file that is missing counts as zero.
func (s *sysfs) state(index int) (deviceState, error) {
	dir := filepath.Join(s.block, deviceName(index))
	var st deviceState
	if _, err := os.Stat(dir); err == nil {
		st.exists = true
	}
	pid, err := readWords(filepath.Join(dir, "pid"))
	if err != nil {
		return st, err
	}
	size, err := readWords(filepath.Join(dir, "size"))
	if err != nil {
		return st, err
	}
	inFlight, err := readWords(filepath.Join(dir, "inflight"))
	if err != nil {
		return st, err
	}
	if len(pid) > 0 {
		st.pid = int(pid[0])
	}
	if len(size) > 0 {
		st.sizeBytes = size[0] * sectorBytes
	}
	st.inFlight = slices.ContainsFunc(inFlight, func(n uint64) bool { return n != 0 })
	holders, err := os.ReadDir(filepath.Join(dir, "holders"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return st, err
	}
	for _, h := range holders {
		st.holders = append(st.holders, h.Name())
	}
	backend, err := os.ReadFile(filepath.Join(dir, "backend"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return st, err
	}
	st.backend = strings.TrimSuffix(string(backend), "\n")
	block, err := readWords(filepath.Join(dir, "queue", "logical_block_size"))
	if err != nil {
		return st, err
	}
	if len(block) > 0 {
		st.blockBytes = uint32(block[0])
	}
	ro, err := readWords(filepath.Join(dir, "ro"))
	if err != nil {
		return st, err
	}
	st.readOnly = len(ro) > 0 && ro[0] != 0
	_, err = os.Stat(s.path(index))
	st.node = err == nil
	return st, nil
}

// readWords reads a file of numbers, nil if it does not exist.
func readWords(path string) ([]uint64, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []uint64
	for word := range strings.FieldsSeq(string(b)) {
		n, err := strconv.ParseUint(word, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %q is no number", path, word)
		}
		out = append(out, n)
	}
	return out, nil
}

// wait polls until ok accepts the device's state, and returns the last state.
//
// Errors: the context's.
func (s *sysfs) wait(ctx context.Context, index int, ok func(*deviceState) bool) (deviceState, error) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		st, err := s.state(index)
		if err != nil || ok(&st) {
			return st, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return st, ctx.Err()
		}
	}
}
