package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"time"
)

// A load is one fio job.
type load struct {
	rw          string // fio's rw=
	blockBytes  int
	depth       int
	connections int
}

func (l load) String() string {
	return fmt.Sprintf("%s bs=%dk depth=%d connections=%d", l.rw, l.blockBytes>>10, l.depth, l.connections)
}

// A result is the outcome of one run of a load.
type result struct {
	IOPS           float64 `json:"iops,omitempty"`
	BytesPerSecond float64 `json:"bytes_per_second,omitempty"`
	// CPUMicros is the server's processor time for one request.
	CPUMicros float64 `json:"cpu_us,omitempty"`
	// Latencies in microseconds.
	P50  float64 `json:"p50_us,omitempty"`
	P99  float64 `json:"p99_us,omitempty"`
	P999 float64 `json:"p999_us,omitempty"`
	// Seconds is the time that a copy or unpacking a tree took, and CPUSeconds the server's
	// processor time for it.
	Seconds    float64 `json:"seconds,omitempty"`
	CPUSeconds float64 `json:"cpu_seconds,omitempty"`
	// Calls is system calls for one request.
	Calls float64 `json:"calls,omitempty"`
	// Percentiles is the distribution of latency: percentile to microseconds.
	Percentiles map[string]float64 `json:"percentiles_us,omitempty"`
}

// fioReport is the part of fio's JSON that is used.
type fioReport struct {
	Jobs []struct {
		Error int     `json:"error"`
		Read  fioSide `json:"read"`
		Write fioSide `json:"write"`
	} `json:"jobs"`
}

type fioSide struct {
	IOPS           float64 `json:"iops"`
	BytesPerSecond float64 `json:"bw_bytes"`
	Total          int64   `json:"total_ios"`
	Latency        struct {
		Percentile map[string]float64 `json:"percentile"`
	} `json:"clat_ns"`
}

// runFio puts load l on the server for d and measures it.
func runFio(p *process, l load, sizeBytes int64, d time.Duration, seed int) (result, error) {
	cpu, err := processorTime(p.pid())
	if err != nil {
		return result{}, err
	}
	side, err := fio(p, l, sizeBytes, "--time_based", "--runtime="+strconv.FormatFloat(d.Seconds(), 'f', -1, 64),
		"--randseed="+strconv.Itoa(seed+1))
	if err != nil {
		return result{}, fmt.Errorf("%s: %s: %w", p.kind, l, err)
	}
	after, err := processorTime(p.pid())
	if err != nil {
		return result{}, err
	}
	const percentile50, percentile99, percentile999 = "50.000000", "99.000000", "99.900000"
	r := result{
		IOPS: side.IOPS, BytesPerSecond: side.BytesPerSecond,
		CPUMicros:   float64((after - cpu).Microseconds()) / float64(side.Total),
		Percentiles: make(map[string]float64),
	}
	for k, ns := range side.Latency.Percentile {
		r.Percentiles[k] = ns / 1e3
	}
	r.P50, r.P99, r.P999 = r.Percentiles[percentile50], r.Percentiles[percentile99], r.Percentiles[percentile999]
	return r, nil
}

// fio runs one job: on the device if the server is attached to one, otherwise as an NBD
// client.
func fio(p *process, l load, sizeBytes int64, more ...string) (fioSide, error) {
	args := []string{"--ioengine=nbd", "--uri=" + p.uri}
	if p.device != "" {
		args = []string{"--ioengine=libaio", "--direct=1", "--thread", "--filename=" + p.device}
	}
	args = append(args,
		"--name=bench", "--rw="+l.rw, "--bs="+strconv.Itoa(l.blockBytes),
		"--iodepth="+strconv.Itoa(l.depth), "--numjobs="+strconv.Itoa(l.connections), "--group_reporting",
		"--size="+strconv.FormatInt(sizeBytes, 10), "--norandommap", "--output-format=json", "--eta=never",
	)
	var out, errs bytes.Buffer
	cmd := exec.Command("fio", append(args, more...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return fioSide{}, fmt.Errorf("fio: %w: %s", err, errs.String())
	}
	// fio may write warnings before the JSON.
	b := out.Bytes()
	if i := bytes.IndexByte(b, '{'); i > 0 {
		b = b[i:]
	}
	var r fioReport
	if err := json.Unmarshal(b, &r); err != nil {
		return fioSide{}, fmt.Errorf("fio's report: %w", err)
	}
	if len(r.Jobs) != 1 || r.Jobs[0].Error != 0 {
		return fioSide{}, fmt.Errorf("fio failed: %s", errs.String())
	}
	side := r.Jobs[0].Read
	if r.Jobs[0].Write.Total > 0 {
		side = r.Jobs[0].Write
	}
	if side.Total == 0 {
		return fioSide{}, fmt.Errorf("fio did nothing: %s", errs.String())
	}
	return side, nil
}

// fill writes the whole disk, so that no read finds a hole.
func fill(p *process, sizeBytes int64) error {
	l := load{rw: "write", blockBytes: 256 << 10, depth: 16, connections: 1}
	if _, err := fio(p, l, sizeBytes, "--refill_buffers"); err != nil {
		return fmt.Errorf("%s: filling it: %w", p.kind, err)
	}
	return nil
}

// nbdcopy copies between a server and a file, or null:, and returns the time.
func nbdcopy(from, to string) (time.Duration, error) {
	begin := time.Now()
	var errs bytes.Buffer
	cmd := exec.Command("nbdcopy", "--", from, to)
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("nbdcopy %s %s: %w: %s", from, to, err, errs.String())
	}
	return time.Since(begin), nil
}
