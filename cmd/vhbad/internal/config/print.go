package config

import (
	"bytes"
	_ "embed" // for schema.json
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Schema is the JSON Schema of a configuration file: made of File and its comments,
// and held against both the strict parser and the examples, by TestSchema.
//
//go:generate go test -run TestSchema_Document -update .
//go:embed schema.json
var Schema []byte

// File returns a configuration file that means c, with nothing left to defaults.
func (c *Config) File() *File {
	f := &File{
		Listen: c.Listen, Disks: c.Disks, HTTP: c.HTTP, Admin: c.Admin, Replies: c.Replies, CopyReads: c.CopyReads, Log: Log{Format: c.LogFormat, Level: levelName(c.LogLevel)},
		Limits: c.Limits, TLS: c.TLS, HBA: c.HBA, Sandbox: c.Sandbox, ReadOnly: c.ReadOnly, Faults: c.Faults, Hostile: c.Hostile,
	}
	if f.HTTP == "" {
		f.HTTP = Off
	}
	if f.Admin == "" {
		f.Admin = Off
	}
	return f
}

func levelName(l slog.Level) string { return strings.ToLower(l.String()) }

// YAML returns the text of the file, which Parse reads back. With comments, each key has
// its description from the schema.
func (f *File) YAML(comments bool) ([]byte, error) {
	var root yaml.Node
	if err := root.Encode(f); err != nil {
		return nil, err
	}
	if comments {
		var s schemaNode
		if err := json.Unmarshal(Schema, &s); err != nil {
			return nil, fmt.Errorf("schema.json: %w", err)
		}
		s.comment(&root, s.Definitions)
	}
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(&root); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}

// JSON returns the file with the same keys as YAML.
func (f *File) JSON() (map[string]any, error) {
	text, err := f.YAML(false)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	return out, yaml.Unmarshal(text, &out)
}

// A schemaNode is the part of a JSON Schema that comments need.
type schemaNode struct {
	Description string                `json:"description"`
	Ref         string                `json:"$ref"`
	Properties  map[string]schemaNode `json:"properties"`
	Items       *schemaNode           `json:"items"`
	Definitions map[string]schemaNode `json:"$defs"`
}

// comment adds their descriptions to the keys of n. If n is a list, only its first element
// gets them.
func (s *schemaNode) comment(n *yaml.Node, definitions map[string]schemaNode) {
	if name, ok := strings.CutPrefix(s.Ref, "#/$defs/"); ok {
		target := definitions[name]
		target.comment(n, definitions)
		return
	}
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			p := s.Properties[n.Content[i].Value]
			n.Content[i].HeadComment = p.Description
			p.comment(n.Content[i+1], definitions)
		}
	case yaml.SequenceNode:
		if len(n.Content) > 0 && s.Items != nil {
			s.Items.comment(n.Content[0], definitions)
		}
	default:
	}
}
