// The tools of this runner. What a tool is lies here; how its calls are run, in runner.go.

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Tool is a tool: what it says of itself to the mesh, and the function behind it.
type Tool struct {
	Name        string
	Description string // what a model reads
	Parameters  string // JSON Schema of the arguments
	Timeout     time.Duration
	Idempotent  bool // a call may be run twice
	Destructive bool // it changes what can't be changed back
	Approval    string
	Run         func(ctx context.Context, folder string, arguments json.RawMessage) (any, error)
}

// Refused is a tool's own refusal: this call had no effect, and can't succeed.
type Refused struct{ error }

const fileSchema = `{"type": "string", "pattern": "^[a-z0-9_-]{1,64}\\.txt$", "description": "a file, such as notes.txt"}`

var tools = []Tool{
	{
		Name:        "word_count",
		Description: "Counts the lines and words of a text file.",
		Parameters: `{"type": "object", "properties": {"file": ` + fileSchema + `},
			"required": ["file"], "additionalProperties": false}`,
		Timeout:    30 * time.Second,
		Idempotent: true,
		Approval:   "never",
		Run:        wordCount,
	},
	{
		Name:        "append_line",
		Description: "Adds a line to the end of a text file.",
		Parameters: `{"type": "object", "properties": {"file": ` + fileSchema + `,
			"line": {"type": "string", "pattern": "^[^\\r\\n]{0,1000}$"}}, "required": ["file", "line"], "additionalProperties": false}`,
		Timeout:     30 * time.Second,
		Destructive: true, // so a task may ask for a person's approval
		Approval:    "destructive",
		Run:         appendLine,
	},
}

func wordCount(_ context.Context, folder string, arguments json.RawMessage) (any, error) {
	var asked struct{ File string }
	if err := json.Unmarshal(arguments, &asked); err != nil {
		return nil, err
	}
	file, err := os.Open(filepath.Join(folder, asked.File))
	if errors.Is(err, os.ErrNotExist) {
		return nil, Refused{fmt.Errorf("there is no file %s", asked.File)}
	} else if err != nil {
		return nil, err
	}
	defer file.Close()
	lines, words := 0, 0
	scanner := bufio.NewScanner(file)
	for scanner.Scan() {
		lines++
		words += len(strings.Fields(scanner.Text()))
	}
	return map[string]int{"lines": lines, "words": words}, scanner.Err()
}

func appendLine(_ context.Context, folder string, arguments json.RawMessage) (any, error) {
	var asked struct{ File, Line string }
	if err := json.Unmarshal(arguments, &asked); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(folder, asked.File), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err = file.WriteString(asked.Line + "\n"); err != nil {
		return nil, err
	}
	return "done", file.Close()
}
