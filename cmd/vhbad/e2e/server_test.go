//go:build interop || kernel

package e2e

import (
	"fmt"
	"os/exec"
	"strings"
)

// Names of the servers that -server takes.
const (
	serverVhbad  = "vhbad"
	serverNbdkit = "nbdkit"
)

// exportName is the name under which the tests' disk is served. nbdkit takes any name.
const exportName = "d"

// A serverConfig says what to serve and where.
type serverConfig struct {
	kind   string // serverVhbad or serverNbdkit
	binary string // of vhbad
	listen string // unix:///PATH or tcp://HOST:PORT; empty for sockets that are passed
	disk   string // memory:SIZE or file:PATH, as in vhbad's --disk
	folder string // for the admin socket
	extra  []string
}

// command is the command line of the server, in the foreground.
func (c serverConfig) command() (*exec.Cmd, error) {
	switch c.kind {
	case serverVhbad:
		args := append([]string{
			"serve", "--disk", exportName + "=" + c.disk,
			"--http", "127.0.0.1:0", "--admin", c.folder + "/admin.sock",
		}, c.extra...)
		if c.listen != "" {
			args = append(args, "--listen", c.listen)
		}
		return exec.Command(c.binary, args...), nil
	case serverNbdkit:
		args := []string{"--foreground"}
		if path, ok := strings.CutPrefix(c.listen, "unix://"); ok {
			args = append(args, "--unix", path)
		} else {
			host, port, _ := strings.Cut(strings.TrimPrefix(c.listen, "tcp://"), ":")
			args = append(args, "--ipaddr", host, "--port", port)
		}
		plugin, argument, _ := strings.Cut(c.disk, ":")
		path, ok := findTool("nbdkit")
		if !ok {
			return nil, fmt.Errorf("nbdkit is missing; install package %s", toolPackages["nbdkit"])
		}
		return exec.Command(path, append(args, plugin, strings.TrimSuffix(argument, "iB"))...), nil
	default:
		return nil, fmt.Errorf("-server %q: want %s or %s", c.kind, serverVhbad, serverNbdkit)
	}
}
