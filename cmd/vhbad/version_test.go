package main

import (
	"encoding/json"
	"runtime/debug"
	"testing"
)

func TestVersion_Commit(t *testing.T) {
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef0123456789abcdef01234567"}
	date := debug.BuildSetting{Key: "vcs.time", Value: "2026-01-02T03:04:05Z"}
	for _, tt := range []struct {
		name       string
		settings   []debug.BuildSetting
		line, json string
	}{
		{"archive", []debug.BuildSetting{{Key: "CGO_ENABLED", Value: "0"}}, "vhbad v1 go os/arch", `{"version":"v1","go":"go","platform":"os/arch"}`},
		{
			"checkout",
			[]debug.BuildSetting{revision, date, {Key: "vcs.modified", Value: "false"}},
			"vhbad v1 go os/arch (commit 0123456789ab of 2026-01-02T03:04:05Z)",
			`{"version":"v1","revision":"` + revision.Value + `","date":"2026-01-02T03:04:05Z","go":"go","platform":"os/arch"}`,
		},
		{
			"edited",
			[]debug.BuildSetting{revision, date, {Key: "vcs.modified", Value: "true"}},
			"vhbad v1 go os/arch (commit 0123456789ab of 2026-01-02T03:04:05Z, modified)",
			`{"version":"v1","revision":"` + revision.Value + `","date":"2026-01-02T03:04:05Z","modified":true,"go":"go","platform":"os/arch"}`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := versionInfo{Version: "v1", Go: "go", Platform: "os/arch"}
			v.addCommit(tt.settings)
			if got := v.String(); got != tt.line {
				t.Errorf("got %q, want %q", got, tt.line)
			}
			b, err := json.Marshal(v)
			if err != nil || string(b) != tt.json {
				t.Errorf("got %s, %v; want %s", b, err, tt.json)
			}
		})
	}
}
