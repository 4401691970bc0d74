package example

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// A Disk is what a ledger needs from its disk.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

const blockBytes = 512

// A Ledger keeps entries on a disk, each in a block of its own. Block 0, in front of
// them, holds their number.
type Ledger struct {
	disk Disk
	n    uint64
	// Careless leaves out a Sync. It is the bug.
	Careless bool
}

// Format makes an empty ledger.
func Format(d Disk) (*Ledger, error) {
	l := &Ledger{disk: d}
	return l, l.setCount(0)
}

// Open opens a ledger. It fails if the disk does not hold one.
func Open(d Disk) (*Ledger, error) {
	block := make([]byte, blockBytes)
	if _, err := d.ReadAt(block, 0); err != nil {
		return nil, err
	}
	l := &Ledger{disk: d, n: binary.LittleEndian.Uint64(block)}
	for i := range l.n {
		if _, err := l.Entry(i); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// Len is how many entries there are.
func (l *Ledger) Len() int { return int(l.n) }

// Add adds an entry, which is permanent once Add has returned.
func (l *Ledger) Add(text string) error {
	block := make([]byte, blockBytes)
	block[0] = byte(copy(block[1:], text))
	if _, err := l.disk.WriteAt(block, int64(l.n+1)*blockBytes); err != nil {
		return err
	}
	if !l.Careless { // otherwise block 0 may become durable before the entry does
		if err := l.disk.Sync(); err != nil {
			return err
		}
	}
	if err := l.setCount(l.n + 1); err != nil {
		return err
	}
	l.n++
	return nil
}

// setCount makes n the number of entries, durably.
func (l *Ledger) setCount(n uint64) error {
	block := make([]byte, blockBytes)
	binary.LittleEndian.PutUint64(block, n)
	if _, err := l.disk.WriteAt(block, 0); err != nil {
		return err
	}
	return l.disk.Sync()
}

// Entry is an entry, counted from 0.
func (l *Ledger) Entry(i uint64) (string, error) {
	block := make([]byte, blockBytes)
	if _, err := l.disk.ReadAt(block, int64(i+1)*blockBytes); err != nil {
		return "", err
	}
	n := int(block[0])
	if n == 0 || n > blockBytes-1 || len(bytes.Trim(block[1+n:], "\x00")) != 0 {
		return "", fmt.Errorf("entry %d is not there", i)
	}
	return string(block[1 : 1+n]), nil
}
