package config

import (
	"cmp"
	"fmt"
	"path/filepath"
)

// Sandbox says which parts of the file system the daemon can still reach once it serves.
type Sandbox struct {
	// Mode is "auto" or "off". Empty means auto.
	Mode SandboxMode `yaml:"mode"`
	// Paths are files and folders that images may be in later, besides those of the disks
	// configured at the start.
	Paths []string `yaml:"paths"`
}

// SandboxMode says whether there is a sandbox.
type SandboxMode string

// The values of SandboxMode.
const (
	SandboxAuto SandboxMode = "auto" // as far as the kernel can
	SandboxOff  SandboxMode = "off"
)

func (s *Sandbox) resolve() error {
	s.Mode = cmp.Or(s.Mode, SandboxAuto)
	if s.Mode != SandboxAuto && s.Mode != SandboxOff {
		return fmt.Errorf("sandbox mode %q: want %s or %s", string(s.Mode), SandboxAuto, SandboxOff)
	}
	for _, path := range s.Paths {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("sandbox path %q: want an absolute path", path)
		}
	}
	return nil
}
