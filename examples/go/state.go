// The fold of a journal, as far as a runner of calls needs it, and what it decides. Pure.

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

const (
	defaultPool = "default" // of a request that names no other
)

// Asked is a call that a completed turn asks for, and what was decided on it.
type Asked struct {
	Call      string          `json:"call"`
	Tool      string          `json:"tool"`
	Arguments json.RawMessage `json:"arguments"`
	Approval  bool            `json:"approval"`
}

// Event has the fields that decide anything here, of whichever type the event is.
type Event struct {
	Type     string    `json:"type"`
	ID       string    `json:"id"`
	N        int       `json:"n"`
	Step     string    `json:"step"`
	Gen      int       `json:"gen"`
	Message  uint64    `json:"message"`
	Turn     int       `json:"turn"`
	Call     string    `json:"call"`
	Decision string    `json:"decision"`
	Priority string    `json:"priority"`
	Deadline *string   `json:"deadline"`
	Error    ErrorInfo `json:"error"`
	Calls    []Asked   `json:"calls"`
	Steps    []StepGen `json:"steps"`
	Finish   string    `json:"finish_reason"`
	Budget   *int      `json:"budget_tokens"`
	Left     *int      `json:"budget_left_tokens"`
	Time     time.Time `json:"time"`
	Delay    float64   `json:"delay_seconds"`
	Tries    int       `json:"tries"`
	Timer    bool      `json:"timer"`
	Usage    struct {
		InputTokens  int `json:"input_tokens"`
		OutputTokens int `json:"output_tokens"`
	} `json:"usage"`
	Request struct {
		Pool            string `json:"pool"`
		MaxTurns        *int   `json:"max_turns"`
		MaxOutputTokens *int   `json:"max_output_tokens"`
	} `json:"request"`
	Edits struct {
		Pool      string                     `json:"pool"`
		Arguments map[string]json.RawMessage `json:"arguments"`
	} `json:"edits"`
}

// State is what a journal says, up to stream sequence Revision.
type State struct {
	Revision    uint64
	NextN       int
	hole        bool
	queued      *Event
	pool        string // of the turns to come
	ended       bool
	turns       map[int]Event        // by turn, completed ones
	results     map[string]bool      // calls that have their result
	approved    map[string]bool      // calls that a person agreed to
	children    map[string]bool      // calls that became tasks of their own
	gens        map[string]int       // replays of each step
	bindings    map[StepGen]uint64   // the message that stands for it: that of the first claim
	nextTries   map[StepGen]NextTry  // what a timer brings
	timedTries  map[StepGen]int      // failed tries when a timer last took the message's place
	releases    map[StepGen]int      // how often it lost its owner and its message
	released    map[StepGen]bool     // and was not claimed since
	claims      map[StepGen][]string // ids of the claims
	deadLetters map[StepGen]Event    // open ones
	repaired    map[StepGen]Event    // replayed since: their records may still have to be written
	tokens      int                  // put out by all turns
	spent       int                  // read and put out by all turns
}

func newState() *State {
	return &State{
		turns: map[int]Event{}, results: map[string]bool{}, approved: map[string]bool{}, children: map[string]bool{},
		gens: map[string]int{}, bindings: map[StepGen]uint64{}, claims: map[StepGen][]string{},
		deadLetters: map[StepGen]Event{}, repaired: map[StepGen]Event{}, nextTries: map[StepGen]NextTry{}, timedTries: map[StepGen]int{},
		releases: map[StepGen]int{}, released: map[StepGen]bool{},
	}
}

// NextTry is the try of a step whose message is gone: when it is due, and how many have failed.
type NextTry struct {
	at    time.Time
	tries int
}

var errHole = errors.New("the journal has a hole: the read was stale")

// whole says whether an append may follow: deltas before the last completed turn may be gone, later ones not.
func (state *State) whole() error {
	if state.hole {
		return errHole
	}
	return nil
}

// fold adds one event. Events of unknown types keep their place in n, and change nothing else.
func (state *State) fold(sequence uint64, event Event) {
	state.hole = state.hole || event.N != state.NextN
	state.Revision, state.NextN = sequence, event.N+1
	if state.ended {
		return
	}
	step := StepGen{event.Step, event.Gen}
	switch event.Type {
	case "task.queued":
		state.queued = &event
		if state.pool = event.Request.Pool; state.pool == "" {
			state.pool = defaultPool
		}
	case "step.claimed":
		if _, bound := state.bindings[step]; !bound {
			state.bindings[step] = event.Message
		}
		delete(state.nextTries, step)
		delete(state.released, step)
		state.claims[step] = append(state.claims[step], event.ID)
	case "step.released": // another message is published for it
		delete(state.bindings, step)
		delete(state.nextTries, step)
		state.releases[step]++
		state.released[step] = true
	case "turn.completed":
		state.hole = false
		state.turns[event.Turn] = event
		state.tokens += event.Usage.OutputTokens
		state.spent += event.Usage.InputTokens + event.Usage.OutputTokens
	case "tool.completed", "tool.failed", "subtask.completed":
		state.results[event.Call] = true
	case "input.received":
		if event.Call != "" {
			state.results[event.Call] = true
		}
	case "approval.resolved":
		if event.Decision == "approved" {
			state.approved[event.Call] = true
		} else {
			state.results[event.Call] = true
		}
	case "subtask.started":
		state.children[event.Call] = true
	case "task.dead_lettered":
		state.deadLetters[step] = event
	case "task.replayed":
		for _, replayed := range event.Steps {
			if letter, found := state.deadLetters[replayed]; found {
				state.repaired[replayed] = letter
			}
			delete(state.deadLetters, replayed)
			state.gens[replayed.Step] = max(state.gens[replayed.Step], replayed.Gen+1)
		}
		state.edit(event)
	case "task.retrying":
		if event.Timer { // its message is gone: the one that the timer brings may be claimed
			delete(state.bindings, step)
			state.timedTries[step] = event.Tries
			delay := time.Duration(event.Delay * float64(time.Second))
			state.nextTries[step] = NextTry{event.Time.Add(delay), event.Tries}
		}
	case "task.completed", "task.failed", "task.cancelled", "task.expired":
		state.ended = true
	}
}

// edit changes what a replay has changed, from here on: of the past it changes nothing.
func (state *State) edit(replayed Event) {
	if replayed.Edits.Pool != "" {
		state.pool = replayed.Edits.Pool
	}
	for _, completed := range state.turns {
		for index, asked := range completed.Calls {
			if arguments, found := replayed.Edits.Arguments[asked.Call]; found {
				completed.Calls[index].Arguments = arguments
			}
		}
	}
}

// letter is the dead letter of a step, open or repaired.
func (state *State) letter(step StepGen) Event {
	if letter, found := state.deadLetters[step]; found {
		return letter
	}
	return state.repaired[step]
}

func (state *State) asked(work Work) (Asked, bool) {
	for _, asked := range state.turns[work.Turn].Calls {
		if asked.Call == work.Call && asked.Tool == work.Tool {
			return asked, true
		}
	}
	return Asked{}, false
}

func (state *State) isLastClaim(work Work, claim string) bool {
	claims := state.claims[work.step()]
	return len(claims) > 0 && claims[len(claims)-1] == claim
}

// owns says whether a claim still holds: only then may anything be appended for its step.
func (state *State) owns(work Work, claim string) bool {
	_, dead := state.deadLetters[work.step()]
	return !state.ended && !dead && !state.released[work.step()] && state.isLastClaim(work, claim) && state.gens[work.Call] == work.Gen
}

// Decision is what to do with a delivery.
type Decision string

const (
	claim        Decision = "claim"         // the call is to be run
	settle       Decision = "settle"        // it is done: publish what is due, ack
	drop         Decision = "drop"          // another message stands for it: ack, and no more
	later        Decision = "later"         // its journal can't be seen yet, or nobody has agreed yet
	refuse       Decision = "refuse"        // no journal can fit: a dead letter of the message
	deadLettered Decision = "dead_lettered" // it gave up before: write its record again, term
	waits        Decision = "waits"         // a timer has taken its place: publish that again, ack
	moved        Decision = "moved"         // another message stands for it now: publish that, ack
)

// decide is the table of section 12, for calls: the first line that fits.
func decide(state *State, work Work, message uint64) Decision {
	step := work.step()
	bound, isBound := state.bindings[step]
	_, dead := state.deadLetters[step]
	_, repaired := state.repaired[step]
	asked, found := state.asked(work)
	_, isRetried := state.nextTries[step]
	switch {
	case state.queued == nil:
		return later
	case state.ended:
		return settle
	case work.Gen < state.gens[work.Call] && repaired: // its record may still have to be written
		return deadLettered
	case work.Gen < state.gens[work.Call]:
		return drop
	case work.Gen > state.gens[work.Call]:
		return later
	case work.Tries < state.timedTries[step] && isRetried: // a timer has taken this message's place
		return waits
	case work.Tries < state.timedTries[step]:
		return drop
	case work.Releases < state.releases[step] && state.released[step] && !state.results[work.Call]:
		return moved
	case work.Releases < state.releases[step]:
		return drop
	case work.Tries > state.timedTries[step] || work.Releases > state.releases[step]:
		return later
	case isBound && bound != message:
		return drop
	case dead:
		return deadLettered
	case state.results[work.Call]:
		return settle
	case !found:
		return refuse
	case state.children[work.Call]:
		return settle
	case asked.Approval && !state.approved[work.Call]:
		return later
	}
	return claim
}

// nextTurn is the turn that is due once every call of a turn has its result; 0 if none is.
func nextTurn(state *State, turn int) int {
	const maxTurns = 32 // of a request that names no other limit
	completed, found := state.turns[turn]
	if !found || state.ended || state.queued == nil || completed.Finish == "length" {
		return 0
	}
	request := state.queued.Request
	if turn >= *orElse(request.MaxTurns, maxTurns) || state.tokens >= *orElse(request.MaxOutputTokens, state.tokens+1) {
		return 0
	}
	// What its sub-tasks have used counts too: its writer knew. One of before counted the turns alone.
	ofTurns := *orElse(state.queued.Budget, state.spent+1) - state.spent
	if *orElse(completed.Left, ofTurns) <= 0 {
		return 0
	}
	for _, asked := range completed.Calls {
		if !state.results[asked.Call] {
			return 0
		}
	}
	return turn + 1
}

// nextTurnWork is that turn's message: its subject, its message id and its payload.
func nextTurnWork(state *State, work Work, turn int) (subject, id string, payload map[string]any) {
	step := strconv.Itoa(turn)
	payload = map[string]any{
		"kind": "turn", "task": work.Task, "tenant": work.Tenant, "turn": turn, "gen": state.gens[step],
		"pool": state.pool, "priority": state.queued.Priority, "deadline": state.queued.Deadline,
	}
	subject = "turns." + state.pool + "." + state.queued.Priority + "." + work.Tenant
	return subject, work.Task + "." + step + ".g" + strconv.Itoa(state.gens[step]), payload
}

// retryTimer is what brings a step's next try: the timer's subject, and the one that it fires on; its message id, when it
// is due, and the command that comes then.
func retryTimer(state *State, work Work) (at, fired, id, schedule string, command map[string]any) {
	next := state.nextTries[work.step()]
	command = map[string]any{
		"kind": "retry", "task": work.Task, "tenant": work.Tenant, "by": "taskmesh", "step": work.Call, "gen": work.Gen,
		"tries": next.tries,
	}
	place := fmt.Sprintf("retry.%s.%s.%s-g%d-t%d", work.Tenant, work.Task, work.Call, work.Gen, next.tries)
	due := next.at.UTC().Add(time.Second - time.Nanosecond).Truncate(time.Second) // in whole seconds, and never early
	id = fmt.Sprintf("%s.%s.g%d.t%d", work.Task, work.Call, work.Gen, next.tries)
	return "timers.at." + place, "timers.fired." + place, id, "@at " + due.Format(time.RFC3339), command
}

// movedWork is the message of a call that was released: its message id, and its payload.
func movedWork(state *State, work Work) (id string, payload map[string]any) {
	asked, _ := state.asked(work)
	tries, releases := state.timedTries[work.step()], state.releases[work.step()]
	payload = map[string]any{
		"kind": "tool", "task": work.Task, "tenant": work.Tenant, "turn": work.Turn, "call": work.Call, "gen": work.Gen,
		"tries": tries, "releases": releases, "tool": work.Tool, "arguments": asked.Arguments, "deadline": state.queued.Deadline,
	}
	id = fmt.Sprintf("%s.%d.%s.g%d", work.Task, work.Turn, work.Call, work.Gen)
	if tries > 0 {
		id = fmt.Sprintf("%s.%s.g%d.t%d", work.Task, work.Call, work.Gen, tries)
	}
	return fmt.Sprintf("%s.r%d", id, releases), payload
}

func orElse(value *int, other int) *int {
	if value != nil {
		return value
	}
	return &other
}
