package scsi_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vhbad/vhbad/internal/scsi"
)

var senseCases = []struct {
	name       string
	sense      scsi.Sense
	fixed      []byte
	descriptor []byte
	fixedLoses bool // fixed format cannot hold it
}{
	{
		name:       "no sense",
		sense:      scsi.Sense{},
		fixed:      []byte{0x70, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		descriptor: []byte{0x72, 0, 0, 0, 0, 0, 0, 0},
	},
	{
		name: "medium error at a block",
		sense: scsi.Sense{
			Key: scsi.KeyMediumError, Additional: scsi.UnrecoveredReadError, Information: 0x01020304, InformationValid: true,
		},
		fixed:      []byte{0xf0, 0, 3, 1, 2, 3, 4, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0},
		descriptor: []byte{0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 0, 1, 2, 3, 4},
	},
	{
		name: "medium error beyond 32 bits",
		sense: scsi.Sense{
			Key: scsi.KeyMediumError, Additional: scsi.WriteError, Information: 1 << 32, InformationValid: true,
		},
		fixed:      []byte{0x70, 0, 3, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x0c, 0, 0, 0, 0, 0},
		descriptor: []byte{0x72, 3, 0x0c, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0},
		fixedLoses: true,
	},
	{
		name: "invalid field in CDB",
		sense: scsi.Sense{
			Key: scsi.KeyIllegalRequest, Additional: scsi.InvalidFieldInCDB, Field: 0x0102, FieldInCDB: true, FieldValid: true,
		},
		fixed:      []byte{0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xc0, 1, 2},
		descriptor: []byte{0x72, 5, 0x24, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0xc0, 1, 2, 0},
	},
	{
		name: "invalid field in parameter list",
		sense: scsi.Sense{
			Key: scsi.KeyIllegalRequest, Additional: scsi.InvalidFieldInParameterList, Field: 16, FieldValid: true,
		},
		fixed:      []byte{0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x26, 0, 0, 0x80, 0, 16},
		descriptor: []byte{0x72, 5, 0x26, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0x80, 0, 16, 0},
	},
	{
		name:       "deferred",
		sense:      scsi.Sense{Key: scsi.KeyHardwareError, Additional: scsi.InternalTargetFailure, Deferred: true},
		fixed:      []byte{0x71, 0, 4, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x44, 0, 0, 0, 0, 0},
		descriptor: []byte{0x73, 4, 0x44, 0, 0, 0, 0, 0},
	},
	{
		name:       "additional sense code qualifier",
		sense:      scsi.Sense{Key: scsi.KeyDataProtect, Additional: scsi.SpaceAllocationFailed},
		fixed:      []byte{0x70, 0, 7, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x27, 0x07, 0, 0, 0, 0},
		descriptor: []byte{0x72, 7, 0x27, 0x07, 0, 0, 0, 0},
	},
}

func TestSense(t *testing.T) {
	for _, tt := range senseCases {
		t.Run(tt.name, func(t *testing.T) {
			var b [64]byte
			if n := scsi.PutFixedSense(b[:], &tt.sense); !bytes.Equal(b[:n], tt.fixed) {
				t.Errorf("fixed:\ngot  % x\nwant % x", b[:n], tt.fixed)
			}
			if n := scsi.PutDescriptorSense(b[:], &tt.sense); !bytes.Equal(b[:n], tt.descriptor) {
				t.Errorf("descriptor:\ngot  % x\nwant % x", b[:n], tt.descriptor)
			}
			if got, ok := scsi.ParseSense(tt.descriptor); !ok || got != tt.sense {
				t.Errorf("parsed from descriptor format: %v %s", ok, cmp.Diff(tt.sense, got))
			}
			want := tt.sense
			if tt.fixedLoses {
				want.Information, want.InformationValid = 0, false
			}
			if got, ok := scsi.ParseSense(tt.fixed); !ok || got != want {
				t.Errorf("parsed from fixed format: %v %s", ok, cmp.Diff(want, got))
			}
		})
	}
}

func TestParseSense_CutOff(t *testing.T) {
	full := scsi.Sense{
		Key: scsi.KeyMediumError, Additional: scsi.UnrecoveredReadError, Information: 9, InformationValid: true,
	}
	for _, tt := range []struct {
		name  string
		bytes []byte
		want  scsi.Sense
		ok    bool
	}{
		{"nothing", nil, scsi.Sense{}, false},
		{"unknown response code", []byte{0x7f, 3, 0, 0, 0, 0, 0, 0}, scsi.Sense{}, false},
		{"fixed, too short for a key", []byte{0x70, 0}, scsi.Sense{}, false},
		{"fixed, key only", []byte{0xf0, 0, 3}, scsi.Sense{Key: scsi.KeyMediumError}, true},
		{
			"fixed, up to the length field",
			[]byte{0xf0, 0, 3, 0, 0, 0, 9, 10},
			scsi.Sense{Key: scsi.KeyMediumError, Information: 9, InformationValid: true},
			true,
		},
		{
			"fixed, length field says no code",
			[]byte{0xf0, 0, 3, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0},
			scsi.Sense{Key: scsi.KeyMediumError, Information: 9, InformationValid: true},
			true,
		},
		{"fixed, up to the code", []byte{0xf0, 0, 3, 0, 0, 0, 9, 10, 0, 0, 0, 0, 0x11, 0}, full, true},
		{"descriptor, too short", []byte{0x72, 3, 0x11}, scsi.Sense{}, false},
		{
			"descriptor, descriptor cut off",
			[]byte{0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0},
			scsi.Sense{Key: scsi.KeyMediumError, Additional: scsi.UnrecoveredReadError},
			true,
		},
		{
			"descriptor, one of no interest first",
			[]byte{0x72, 3, 0x11, 0, 0, 0, 0, 16, 0x09, 2, 1, 2, 0, 10, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 9},
			full, true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := scsi.ParseSense(tt.bytes)
			if ok != tt.ok || got != tt.want {
				t.Errorf("got %v %+v, want %v %+v", ok, got, tt.ok, tt.want)
			}
		})
	}
}

func TestPutSense_ShortBuffer(t *testing.T) {
	s := scsi.Sense{Key: scsi.KeyMediumError, Information: 1, InformationValid: true}
	for n := range scsi.DescriptorSenseMaxBytes {
		if got := scsi.PutFixedSense(make([]byte, n), &s); got != min(n, scsi.FixedSenseBytes) {
			t.Errorf("fixed into %d bytes: %d written", n, got)
		}
		if got := scsi.PutDescriptorSense(make([]byte, n), &s); got != min(n, 20) {
			t.Errorf("descriptor into %d bytes: %d written", n, got)
		}
	}
}

func FuzzSense(f *testing.F) {
	for _, tt := range senseCases {
		f.Add(tt.fixed)
		f.Add(tt.descriptor)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := scsi.ParseSense(b)
		if !ok {
			return
		}
		// What was understood survives being written and read again.
		var again [scsi.DescriptorSenseMaxBytes]byte
		n := scsi.PutDescriptorSense(again[:], &s)
		if got, ok := scsi.ParseSense(again[:n]); !ok || got != s {
			t.Errorf("% x says %+v; written again % x says %+v", b, s, again[:n], got)
		}
	})
}
