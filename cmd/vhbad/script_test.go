package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/vhbad/vhbad/nbd/nbdtest"
)

// TestMain makes the test binary also the command `vhbad`, in PATH.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"vhbad": main})
}

// TestScript runs testdata/script. Besides testscript's own commands there are:
//
//	exitcode N COMMAND ARG...   run a command that must exit with N
//	serve ARG...                start `vhbad serve ARG...` and wait for its attach
//	                            lines; its output goes to serve.out and serve.err
//	json PATH[=VALUE]...        what was printed last is JSON with these fields
//	nbd send | reply ERRNO      send a write to export d at n.sock, or wait for its reply
//	await TEXT COMMAND ARG...   run a command until it prints what matches
//	signal SIGNAL N               send a signal to it, and it must exit with N
func TestScript(t *testing.T) {
	// Where the tests run under nohup, daemons would do so, too, and not end by SIGHUP.
	hups := make(chan os.Signal, 1)
	signal.Notify(hups, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(hups) })
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("XDG_RUNTIME_DIR", e.WorkDir)
			e.Setenv("GORACE", os.Getenv("GORACE"))
			e.Values[scriptClient] = new(*nbdtest.Client)
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exitcode": scriptExitCode,
			"json":     scriptJSON,
			"await":    scriptAwait,
			"nbd":      scriptNBD,
			"serve":    scriptServe,
			"signal":   scriptSignal,
		},
	})
}

func scriptExitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exitcode N COMMAND ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	var ee *exec.ExitError
	got := 0
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &ee) {
		got = ee.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// A server is a daemon that a script has started.
type server struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has exited
}

// serverKey is where the script's environment keeps its daemon's process id.
const serverKey = "serve_pid"

// servers has the daemons of all scripts by process id; scripts run in parallel.
var servers sync.Map

func scriptServe(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("serve cannot be negated")
	}
	cmd := exec.Command("vhbad", append([]string{"serve"}, args...)...)
	cmd.Dir = ts.Getenv("WORK")
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+ts.Getenv("WORK"))
	stderr, err := os.Create(ts.MkAbs("serve.err"))
	ts.Check(err)
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Check(stderr.Close())
	s := &server{cmd: cmd, done: make(chan struct{})}
	ts.Defer(func() {
		_ = cmd.Process.Kill() // it may have exited
		<-s.done
	})
	out, attached := &strings.Builder{}, false
	lines := bufio.NewReader(stdout)
	for !attached {
		line, err := lines.ReadString('\n')
		out.WriteString(line)
		attached = strings.HasPrefix(line, "attach:")
		if err != nil {
			break
		}
	}
	go func() {
		defer close(s.done)
		_, _ = io.Copy(io.Discard, lines)
		_ = cmd.Wait() // ProcessState has the exit code
	}()
	ts.Check(os.WriteFile(ts.MkAbs("serve.out"), []byte(out.String()), 0o600))
	if !attached {
		<-s.done
		ts.Fatalf("serve ended: %s\n%s%s", cmd.ProcessState, out, ts.ReadFile("serve.err"))
	}
	servers.Store(cmd.Process.Pid, s)
	ts.Setenv(serverKey, strconv.Itoa(cmd.Process.Pid))
}

func scriptSignal(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP, "KILL": syscall.SIGKILL}
	if neg || len(args) != 2 || signals[args[0]] == 0 {
		ts.Fatalf("usage: signal TERM|INT|HUP|KILL N")
	}
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	pid, err := strconv.Atoi(ts.Getenv(serverKey))
	ts.Check(err)
	found, ok := servers.LoadAndDelete(pid)
	if !ok {
		ts.Fatalf("no daemon of this script runs")
	}
	s := found.(*server)
	ts.Check(s.cmd.Process.Signal(signals[args[0]]))
	<-s.done
	if got := s.cmd.ProcessState.ExitCode(); got != want {
		ts.Fatalf("exit code %d, want %d\n%s", got, want, ts.ReadFile("serve.err"))
	}
}
