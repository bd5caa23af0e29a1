// One delivery: check it, fold its journal, decide, claim, run, record, publish what is due, ack.

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

const (
	resultBytesMax     = 256 * 1024
	laterDelay         = 200 * time.Millisecond
	laterDeliveriesMax = 8
	leftDelayMax       = 10 * time.Second
)

// Delivery is a message in this process's hands, and the lease on it.
type Delivery struct {
	jetstream.Msg
	meta     *jetstream.MsgMetadata
	mesh     *Mesh
	ackWait  time.Duration
	leasedAt atomic.Pointer[time.Time]
}

// held asks two clocks: the wall clock goes on while the machine sleeps, and nobody sets the monotonic one.
func (delivery *Delivery) held() bool {
	at := *delivery.leasedAt.Load()
	return time.Since(at) <= delivery.ackWait && time.Since(at.Round(0)) <= delivery.ackWait
}

// keepLease sends heartbeats, and calls `lost` once the lease is over: from then on nothing is sent for the delivery.
func (delivery *Delivery) keepLease(ctx context.Context, lost func()) {
	ticks := time.NewTicker(delivery.ackWait / 3)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		if !delivery.held() {
			lost()
			return
		}
		if at := time.Now(); delivery.InProgress() == nil { // +WPI
			delivery.leasedAt.Store(&at)
		}
	}
}

// answer sends the last word on a delivery, and waits until the broker has it: a double ack.
func (delivery *Delivery) answer(word string) error {
	if !delivery.held() {
		return errLost
	}
	_, err := delivery.mesh.connection.Request(delivery.Reply(), []byte(word), requestTime)
	return err
}

func (delivery *Delivery) nak(delay time.Duration) error {
	if !delivery.held() {
		return errLost
	}
	return delivery.NakWithDelay(delay)
}

func (mesh *Mesh) handle(ctx context.Context, tool Tool, message jetstream.Msg, ackWait time.Duration) error {
	meta, err := message.Metadata()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	delivery := &Delivery{Msg: message, meta: meta, mesh: mesh, ackWait: ackWait}
	at := time.Now()
	delivery.leasedAt.Store(&at)
	go delivery.keepLease(ctx, cancel)

	work, err := mesh.schemas.decodeWork(message.Data(), message.Subject())
	if err != nil && ofAnotherVersion(message.Data(), message.Subject()) {
		return mesh.leave(delivery, err)
	} else if err != nil {
		return mesh.refuse(ctx, delivery, ErrorInfo{"malformed-message", err.Error()})
	}
	journal := &Journal{newState(), mesh, work.Tenant, work.Task, message.Headers().Get("traceparent")}
	if _, err := journal.catchUp(ctx); err != nil {
		return err
	}
	for {
		state := journal.State
		switch decision := decide(state, work, meta.Sequence.Stream); decision {
		case claim:
			id, err := journal.append(ctx, mesh.claimOf(work, delivery), func() bool {
				return delivery.held() && decide(state, work, meta.Sequence.Stream) == claim
			})
			if err == nil {
				return mesh.perform(ctx, tool, work, journal, delivery, id)
			}
			if !errors.Is(err, errLost) || !delivery.held() {
				return err
			} // else something else is to be done: decide again
		case settle:
			return mesh.settle(ctx, work, journal, delivery)
		case waits:
			return mesh.wait(ctx, work, journal, delivery)
		case moved:
			return mesh.move(ctx, work, journal, delivery)
		case drop:
			return delivery.answer("+ACK")
		case later:
			return mesh.later(ctx, work, journal, delivery)
		case deadLettered:
			if err := mesh.deadLetter(ctx, delivery, state.letter(work.step()).Error, &work); err != nil {
				return err
			}
			return delivery.answer("+TERM dead letter")
		case refuse:
			if behind, err := journal.isBehind(ctx); err != nil {
				return err
			} else if behind {
				return delivery.nak(laterDelay)
			}
			return mesh.refuse(ctx, delivery, ErrorInfo{"call-unknown", "no turn of the journal asked for call " + work.Call})
		}
	}
}

func (mesh *Mesh) claimOf(work Work, delivery *Delivery) map[string]any {
	return map[string]any{
		"type": "step.claimed", "step": work.Call, "gen": work.Gen, "message": delivery.meta.Sequence.Stream,
		"worker": mesh.worker, "delivery": delivery.meta.NumDelivered, "turn": work.Turn, "call": work.Call, "tool": work.Tool,
	}
}

// perform runs a claimed call, and records what came of it.
func (mesh *Mesh) perform(
	ctx context.Context, tool Tool, work Work, journal *Journal, delivery *Delivery, claim string,
) error {
	began := time.Now()
	event := mesh.run(ctx, tool, work, journal.State)
	event["turn"], event["call"], event["tool"] = work.Turn, work.Call, work.Tool
	if event["type"] == "tool.completed" {
		event["timings"] = map[string]any{"total_seconds": time.Since(began).Seconds()}
	}
	_, err := journal.append(ctx, event, func() bool { return delivery.held() && journal.State.owns(work, claim) })
	if errors.Is(err, errLost) && journal.State.ended && journal.State.isLastClaim(work, claim) {
		return mesh.settle(ctx, work, journal, delivery) // the task was ended from outside, and nobody else has its message
	} else if err != nil {
		return err // the step is lost: nothing more is sent for the delivery
	}
	log.Printf("%s %s: %s", work.Task, work.Call, event["type"])
	return mesh.settle(ctx, work, journal, delivery)
}

// run is the call itself; its end is an event without the fields that say whose it is.
func (mesh *Mesh) run(ctx context.Context, tool Tool, work Work, state *State) map[string]any {
	outcome := "unknown" // an attempt that broke may have had its effect
	if tool.Idempotent {
		outcome = "failed"
	}
	asked, _ := state.asked(work)
	if err := mesh.parameters[tool.Name].Validate(parse(asked.Arguments)); err != nil {
		return failed("tool-arguments-invalid", err, "failed")
	}
	if !tool.Idempotent && len(state.claims[work.step()]) > 1 {
		return failed("tool-outcome-unknown", errors.New("an earlier attempt may have had its effect"), "unknown")
	}
	ctx, cancel := context.WithTimeout(ctx, tool.Timeout)
	defer cancel()
	type ending struct {
		result any
		err    error
	}
	ended := make(chan ending, 1)
	go func() {
		result, err := tool.Run(ctx, mesh.folder, asked.Arguments)
		ended <- ending{result, err}
	}()
	select {
	case <-ctx.Done(): // too late; or the lease is over, and then the append does not take place
		return failed("tool-timeout", fmt.Errorf("no result within %s", tool.Timeout), outcome)
	case end := <-ended:
		if refused := (Refused{}); errors.As(end.err, &refused) {
			return failed("tool-refused", end.err, "failed")
		} else if end.err != nil {
			return failed("tool-error", end.err, outcome)
		}
		payload, err := json.Marshal(end.result)
		if err != nil {
			return failed("result-invalid", err, outcome)
		} else if len(payload) > resultBytesMax {
			return failed("result-too-large", fmt.Errorf("%d bytes", len(payload)), outcome)
		}
		return map[string]any{"type": "tool.completed", "result": json.RawMessage(payload)}
	}
}

func failed(code string, err error, outcome string) map[string]any {
	return map[string]any{"type": "tool.failed", "error": ErrorInfo{code, err.Error()}, "outcome": outcome}
}

func parse(arguments json.RawMessage) any {
	value, _ := jsonschema.UnmarshalJSON(bytes.NewReader(arguments)) // it is a part of JSON that was parsed before
	return value
}

// settle publishes what is due, and acks. All of it may be done twice.
func (mesh *Mesh) settle(ctx context.Context, work Work, journal *Journal, delivery *Delivery) error {
	if turn := nextTurn(journal.State, work.Turn); turn != 0 {
		subject, id, value := nextTurnWork(journal.State, work, turn)
		fields := map[string]string{"Nats-Msg-Id": id, "traceparent": journal.traceparent}
		if err := mesh.send(ctx, "work.turn", subject, fields, value); err != nil {
			return err
		}
	}
	return delivery.answer("+ACK")
}

// wait publishes the timer that brings the next try, and acks: the message is not to hold a place in its queue meanwhile.
func (mesh *Mesh) wait(ctx context.Context, work Work, journal *Journal, delivery *Delivery) error {
	at, fired, id, schedule, command := retryTimer(journal.State, work)
	fields := map[string]string{
		"Nats-Msg-Id": id, "Nats-Schedule": schedule, "Nats-Schedule-Target": fired,
		"Nats-Schedule-TTL": "2592000s", "traceparent": journal.traceparent,
	}
	if err := mesh.send(ctx, "control.retry", at, fields, command); err != nil {
		return err
	}
	return delivery.answer("+ACK")
}

// move publishes the message that stands for a released call now.
func (mesh *Mesh) move(ctx context.Context, work Work, journal *Journal, delivery *Delivery) error {
	id, payload := movedWork(journal.State, work)
	fields := map[string]string{"Nats-Msg-Id": id, "traceparent": journal.traceparent}
	if err := mesh.send(ctx, "work.tool", "tools."+work.Tool, fields, payload); err != nil {
		return err
	}
	return delivery.answer("+ACK")
}

func (mesh *Mesh) later(ctx context.Context, work Work, journal *Journal, delivery *Delivery) error {
	if delivery.meta.NumDelivered < laterDeliveriesMax {
		return delivery.nak(laterDelay)
	}
	if behind, err := journal.isBehind(ctx); err != nil {
		return err
	} else if behind {
		return delivery.nak(laterDelay)
	}
	return mesh.refuse(ctx, delivery, ErrorInfo{"journal-missing", "no journal fits call " + work.Call})
}

// leave gives a message that this program does not understand to another. The steward gives it up if none does.
func (mesh *Mesh) leave(delivery *Delivery, because error) error {
	log.Printf("message %d left to another: %s", delivery.meta.Sequence.Stream, because)
	delay := leftDelayMax
	if tries := delivery.meta.NumDelivered - 1; tries < 4 {
		delay = min(delay, time.Second<<tries)
	}
	return delivery.nak(delay)
}

// refuse takes a message that nobody can carry out from its queue, its dead letter first.
func (mesh *Mesh) refuse(ctx context.Context, delivery *Delivery, because ErrorInfo) error {
	log.Printf("message %d refused: %s: %s", delivery.meta.Sequence.Stream, because.Code, because.Message)
	if err := mesh.deadLetter(ctx, delivery, because, nil); err != nil {
		return err
	}
	return delivery.answer("+TERM " + because.Code)
}

// deadLetter writes the record of a step that gave up, or, without work, that of a message that fits nothing.
func (mesh *Mesh) deadLetter(ctx context.Context, delivery *Delivery, because ErrorInfo, work *Work) error {
	record := map[string]any{
		"id": newID(), "time": now(), "stream": delivery.meta.Stream, "subject": delivery.Subject(),
		"sequence": delivery.meta.Sequence.Stream, "deliveries": delivery.meta.NumDelivered, "worker": mesh.worker,
		"errors": []ErrorInfo{because},
	}
	record["message"], record["message_encoding"] = asText(delivery.Data())
	stored := strconv.FormatFloat(float64(delivery.meta.Timestamp.UnixMicro())/1e6, 'f', -1, 64)
	subject, id := "dead._.malformed", fmt.Sprintf("%s.%d.%s.dead", delivery.meta.Stream, delivery.meta.Sequence.Stream, stored)
	if work != nil {
		record["tenant"], record["task"], record["step"], record["gen"] = work.Tenant, work.Task, work.Call, work.Gen
		subject = "dead." + work.Tenant + "." + work.Task
		id = fmt.Sprintf("%s.%s.g%d.dead", work.Task, work.Call, work.Gen)
	}
	return mesh.send(ctx, "dead_letter", subject, map[string]string{"Nats-Msg-Id": id}, record)
}

// send publishes a record, a work message or a timer; under a message id, so that twice is the same as once.
func (mesh *Mesh) send(ctx context.Context, name, subject string, fields map[string]string, value any) error {
	payload, err := mesh.schemas.encode(name, value)
	if err != nil {
		return err
	}
	message := nats.NewMsg(subject)
	message.Data = payload
	for field, value := range fields {
		if value != "" {
			message.Header.Set(field, value)
		}
	}
	_, err = mesh.jetstream.PublishMsg(ctx, message)
	return err
}
