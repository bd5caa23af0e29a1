// The journal of one task: reading it, and the one way to add to it.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	pageEvents  = 256
	pageBytes   = 512 * 1024
	requestTime = 5 * time.Second
)

var (
	errLost    = errors.New("the journal has moved on")
	errInvalid = errors.New("not what may be written")
)

// Journal is what one writer has folded of a task.
type Journal struct {
	State        *State
	mesh         *Mesh
	tenant, task string
	traceparent  string
}

func (journal *Journal) subject(part string) string {
	return "events." + journal.tenant + "." + journal.task + "." + part
}

// catchUp reads and folds what was written since; the ids of those events are returned.
func (journal *Journal) catchUp(ctx context.Context) (map[string]bool, error) {
	ids := map[string]bool{}
	for more := true; more; {
		var messages []*nats.Msg
		var err error
		if messages, more, err = journal.readPage(ctx); err != nil {
			return nil, err
		}
		for _, message := range messages {
			sequence, err := strconv.ParseUint(message.Header.Get("Nats-Sequence"), 10, 64)
			if err != nil {
				return nil, err
			}
			event, err := journal.mesh.schemas.decodeEvent(message.Data)
			if err != nil {
				return nil, err
			}
			journal.State.fold(sequence, event)
			ids[event.ID] = true
		}
	}
	return ids, journal.State.whole()
}

func (schemas Schemas) decodeEvent(payload []byte) (event Event, err error) {
	var head struct{ Type string }
	if err = json.Unmarshal(payload, &head); err != nil {
		return event, err
	}
	if schemas[head.Type] != nil { // else it is of a type that is news: its place counts, no more
		if err = schemas.check(head.Type, payload); err != nil {
			return event, err
		}
	}
	return event, json.Unmarshal(payload, &event)
}

// readPage is a batched direct get (NATS ADR-31): any replica answers, perhaps a moment behind.
func (journal *Journal) readPage(ctx context.Context) (messages []*nats.Msg, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	answers, err := journal.mesh.connection.SubscribeSync(nats.NewInbox())
	if err != nil {
		return nil, false, err
	}
	defer answers.Unsubscribe()
	request := fmt.Sprintf(`{"seq":%d,"batch":%d,"max_bytes":%d,"next_by_subj":%q}`,
		journal.State.Revision+1, pageEvents, pageBytes, journal.subject("*"))
	if err := journal.mesh.connection.PublishRequest(journal.mesh.api+"DIRECT.GET.EVENTS", answers.Subject, []byte(request)); err != nil {
		return nil, false, err
	}
	for {
		message, err := answers.NextMsgWithContext(ctx)
		if err != nil {
			return nil, false, err
		}
		switch status := message.Header.Get("Status"); status {
		case "":
			messages = append(messages, message)
		case "204": // the end of the page
			return messages, message.Header.Get("Nats-Num-Pending") != "0", nil
		case "404": // nothing
			return messages, false, nil
		default:
			return nil, false, fmt.Errorf("direct get from EVENTS answered %s", status)
		}
	}
}

// isBehind asks the stream's leader, who alone may say that there is no such call.
func (journal *Journal) isBehind(ctx context.Context) (bool, error) {
	last, err := journal.lastSequence(ctx, "log")
	return last > journal.State.Revision, err
}

// isGone says whether the journal that was folded is there no more: it was purged, or its stream was made again.
func (journal *Journal) isGone(ctx context.Context) (bool, error) {
	last, err := journal.lastSequence(ctx, "*")
	return last < journal.State.Revision, err
}

// lastSequence is what the stream's leader has; 0 if it has nothing.
func (journal *Journal) lastSequence(ctx context.Context, part string) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	request := fmt.Sprintf(`{"last_by_subj":%q}`, journal.subject(part))
	answer, err := journal.mesh.connection.RequestWithContext(ctx, journal.mesh.api+"STREAM.MSG.GET.EVENTS", []byte(request))
	if err != nil {
		return 0, err
	}
	var last struct{ Message struct{ Seq uint64 } }
	err = json.Unmarshal(answer.Data, &last)
	return last.Message.Seq, err
}

// append stores one event, if nobody has written since. `stillRight` judges anew after each conflict: errLost if it says no.
func (journal *Journal) append(ctx context.Context, event map[string]any, stillRight func() bool) (id string, err error) {
	id = newID() // one append keeps its id over all tries
	for tries := 0; ; tries++ {
		if !stillRight() {
			return id, errLost
		}
		if err = journal.publish(ctx, id, event); err == nil {
			return id, nil
		}
		var refused *jetstream.APIError
		conflict := errors.As(err, &refused) && (refused.ErrorCode == 10071 || refused.ErrorCode == 10164)
		if errors.Is(err, errInvalid) || (refused != nil && !conflict) {
			return id, err // the stream is full, say
		}
		if tries > 0 {
			time.Sleep(rand.N(time.Second))
		}
		// Somebody was faster, or nobody knows whether it was stored: the journal tells.
		ids, err := journal.catchUp(ctx)
		if ids[id] && err == nil {
			return id, nil
		} else if ctx.Err() != nil || errors.Is(err, errHole) {
			return id, err
		}
		if conflict && err == nil && len(ids) == 0 { // refused, and nothing new to read: a stale read, or another journal
			if gone, err := journal.isGone(ctx); gone && err == nil {
				return id, errLost
			}
		}
	}
}

func (journal *Journal) publish(ctx context.Context, id string, event map[string]any) error {
	event["id"], event["n"], event["time"] = id, journal.State.NextN, now()
	event["task"], event["tenant"] = journal.task, journal.tenant
	payload, err := journal.mesh.schemas.encode(event["type"].(string), event)
	if err != nil {
		return fmt.Errorf("%w: %w", errInvalid, err)
	}
	message := nats.NewMsg(journal.subject("log"))
	message.Data = payload
	message.Header.Set("Nats-Expected-Last-Subject-Sequence", strconv.FormatUint(journal.State.Revision, 10))
	message.Header.Set("Nats-Expected-Last-Subject-Sequence-Subject", journal.subject("*"))
	if journal.traceparent != "" {
		message.Header.Set("traceparent", journal.traceparent)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	stored, err := journal.mesh.jetstream.PublishMsg(ctx, message)
	if err != nil {
		return err
	}
	folded, err := journal.mesh.schemas.decodeEvent(payload)
	journal.State.fold(stored.Sequence, folded)
	return err
}
