// What is on the wire: schemas, ids and subjects, as PROTOCOL.md has them.

package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"math/big"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Schemas holds the JSON Schema of each event and record by its wire type, such as "tool.completed".
type Schemas map[string]*jsonschema.Schema

func loadSchemas(folder string) (Schemas, error) {
	paths, err := filepath.Glob(filepath.Join(folder, "*.json"))
	if err != nil || len(paths) == 0 {
		return nil, fmt.Errorf("no schemas in %s", folder)
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	schemas := Schemas{}
	for _, path := range paths {
		schema, err := compiler.Compile(path)
		if err != nil {
			return nil, err
		}
		schemas[strings.TrimSuffix(filepath.Base(path), ".json")] = schema
	}
	return schemas, nil
}

// check holds JSON against the schema of a wire type.
func (schemas Schemas) check(name string, payload []byte) error {
	if !utf8.Valid(payload) {
		return fmt.Errorf("%s: not UTF-8", name)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(payload))
	if err != nil {
		return fmt.Errorf("%s: not JSON: %w", name, err)
	}
	return schemas[name].Validate(value)
}

// encode writes what this program makes, and holds it against its schema.
func (schemas Schemas) encode(name string, value any) ([]byte, error) {
	payload, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	return payload, schemas.check(name, payload)
}

// compileSchema makes a schema of a tool's own parameters.
func compileSchema(name, text string) (*jsonschema.Schema, error) {
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource(name, document); err != nil {
		return nil, err
	}
	return compiler.Compile(name)
}

// newID makes a ULID: 48 bits of milliseconds, 80 random bits, 26 characters of base 32.
func newID() string {
	const alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
	random := make([]byte, 10)
	rand.Read(random)
	value := big.NewInt(time.Now().UnixMilli())
	value.Lsh(value, 80).Or(value, new(big.Int).SetBytes(random))
	characters, digit := make([]byte, 26), new(big.Int)
	for place := range characters {
		digit.Rsh(value, uint(5*(25-place)))
		characters[place] = alphabet[digit.And(digit, big.NewInt(31)).Int64()]
	}
	return string(characters)
}

func now() string {
	return time.Now().UTC().Format("2006-01-02T15:04:05.000000Z")
}

// ErrorInfo is an error on the wire: the code is stable, the message is for people.
type ErrorInfo struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// StepGen is a step and the number of its replays: together they are what is claimed.
type StepGen struct {
	Step string `json:"step"`
	Gen  int    `json:"gen"`
}

// Work is a message of TOOLS. Its arguments are not looked at: those of the journal count.
type Work struct {
	Task     string  `json:"task"`
	Tenant   string  `json:"tenant"`
	Turn     int     `json:"turn"`
	Call     string  `json:"call"`
	Gen      int     `json:"gen"`
	Tries    int     `json:"tries"`    // how many had failed when a timer brought the message
	Releases int     `json:"releases"` // how often the step was released when the message was published
	Tool     string  `json:"tool"`
	Deadline *string `json:"deadline"`
}

func (work Work) step() StepGen { return StepGen{work.Call, work.Gen} }

// ofAnotherVersion says whether a message that is not understood may be a later version's: what all of them have is there.
func ofAnotherVersion(payload []byte, subject string) bool {
	var envelope struct{ Kind, Task, Tenant, Tool string }
	if !utf8.Valid(payload) || json.Unmarshal(payload, &envelope) != nil {
		return false
	}
	named := envelope.Kind == "tool" && envelope.Task != "" && envelope.Tenant != ""
	return named && (envelope.Tool == "" || subject == "tools."+envelope.Tool)
}

// decodeWork takes no payload on trust: anybody who may publish can have written it.
func (schemas Schemas) decodeWork(payload []byte, subject string) (Work, error) {
	var work Work
	if err := schemas.check("work.tool", payload); err != nil {
		return work, err
	}
	if err := json.Unmarshal(payload, &work); err != nil {
		return work, err
	}
	if subject != "tools."+work.Tool {
		return work, fmt.Errorf("a call of %s, on %s", work.Tool, subject)
	}
	return work, nil
}
