package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/vhbad/vhbad/cmd/vhbad/internal/config"
	"github.com/vhbad/vhbad/cmd/vhbad/internal/sandbox"
)

// enterSandbox gives up whatever a daemon that serves does not need.
//
// Errors: the kernel has landlock but does not accept the rules. A kernel without
// landlock is no error, only a line in the log.
func (s *serveFlags) enterSandbox(c *config.Config, log *slog.Logger) error {
	if c.Sandbox.Mode == config.SandboxOff {
		return nil
	}
	err := sandbox.Enter(accessOf(c, s.configPath))
	if errors.Is(err, sandbox.ErrUnsupported) {
		log.Info("no sandbox: files are protected by their permissions alone", "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("sandbox: %w (--sandbox %s does without)", err, config.SandboxOff)
	}
	return nil
}

// accessOf returns what a daemon with this configuration may still need after it has
// started.
func accessOf(c *config.Config, configPath string) sandbox.Access {
	a := sandbox.Access{
		// For metrics of the process, and for what a block device can do.
		Read:   []string{"/proc/self", "/proc/stat", "/proc/sys/net/core/somaxconn", "/sys/dev/block", "/sys/devices"},
		Images: append([]string(nil), c.Sandbox.Paths...),
	}
	if configPath != "" { // the whole folder, because editors replace the file
		a.Read = append(a.Read, filepath.Dir(configPath), resolvedFolder(configPath))
	}
	for i := range c.Disks {
		if path := c.Disks[i].File; path != "" {
			a.Images = append(a.Images, imageAccess(path))
		}
		if path := c.Disks[i].Trace; path != "" {
			a.Images = append(a.Images, resolvedFolder(path))
		}
	}
	if dir := c.TLS.Certificates; dir != "" {
		a.Read = append(a.Read, dir)
		// Tools that renew certificates keep them elsewhere and put links here.
		links, err := filepath.Glob(filepath.Join(dir, "*.pem"))
		if err != nil {
			links = nil // the folder's name looks like a pattern; the folder itself is in the list
		}
		for _, link := range links {
			a.Read = append(a.Read, resolvedFolder(link))
		}
	}
	for _, l := range c.Listen {
		if l.Network == "unix" {
			a.Sockets = append(a.Sockets, filepath.Dir(l.Target))
		}
	}
	if c.Admin != "" {
		a.Sockets = append(a.Sockets, filepath.Dir(c.Admin))
	}
	return a
}

// imageAccess returns the folder of an image, where more images may be made later. For a
// device it returns only the device: its folder has all other devices.
func imageAccess(path string) string {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return path
	}
	return resolvedFolder(path)
}

// resolvedFolder is the folder where the file at path really is.
func resolvedFolder(path string) string {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	return filepath.Dir(path)
}
