// A runner of tools for taskmesh, written with PROTOCOL.md, "Serving a tool", and nothing of the mesh's own code.

package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

const (
	callsAtOnce = 4               // of each tool
	idlePull    = 2 * time.Second // how long a pull waits: a stop waits as long
	declareEach = time.Minute     // a declaration is forgotten after ten
)

// Mesh is what every call needs: the broker, the schemas, this process's name, and the folder of the tools' files.
type Mesh struct {
	connection *nats.Conn
	jetstream  jetstream.JetStream
	api        string // what calls of JetStream begin with
	schemas    Schemas
	parameters map[string]*jsonschema.Schema
	worker     string
	folder     string
}

func main() {
	if err := serve(); err != nil {
		log.Fatal(err)
	}
}

func serve() error {
	stopping, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	mesh, err := connect()
	if err != nil {
		return err
	}
	defer mesh.connection.Close()
	var running sync.WaitGroup
	for _, tool := range tools {
		consumer, err := mesh.bind(stopping, tool)
		if err != nil {
			return err
		}
		// Only now, so that a tool that models are offered has somebody who runs it.
		if err := mesh.declare(stopping, tool); err != nil {
			return err
		}
		running.Go(func() { mesh.keepDeclared(stopping, tool) })
		for range callsAtOnce {
			running.Go(func() { mesh.pull(stopping, tool, consumer) })
		}
	}
	fmt.Println("ready")
	running.Wait() // each call in hand ends by itself, or at its tool's timeout
	return nil
}

func connect() (*Mesh, error) {
	schemas, err := loadSchemas(setting("EXAMPLE_SCHEMAS", "../../libs/contracts/spec/schemas"))
	if err != nil {
		return nil, err
	}
	// No buffer for what is published while disconnected: who has given up on a publish must know that it is not stored later.
	connection, err := nats.Connect(setting("MESH_NATS_URL", nats.DefaultURL), nats.ReconnectBufSize(-1), nats.MaxReconnects(-1))
	if err != nil {
		return nil, err
	}
	stream, err := jetstream.New(connection)
	api := "$JS.API."
	if domain := os.Getenv("MESH_NATS_DOMAIN"); domain != "" {
		stream, err = jetstream.NewWithDomain(connection, domain)
		api = "$JS." + domain + ".API."
	}
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname()
	worker := fmt.Sprintf("go-tools-%d@%s", os.Getpid(), host)
	parameters := map[string]*jsonschema.Schema{}
	return &Mesh{connection, stream, api, schemas, parameters, worker, setting("EXAMPLE_FOLDER", ".")}, nil
}

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// bind sees to it that a tool has its consumer; one that is there keeps its settings.
func (mesh *Mesh) bind(ctx context.Context, tool Tool) (jetstream.Consumer, error) {
	schema, err := compileSchema(tool.Name, tool.Parameters)
	if err != nil {
		return nil, err
	}
	mesh.parameters[tool.Name] = schema
	ackWaitSeconds, err := strconv.ParseFloat(setting("MESH_ACK_WAIT_SECONDS", "5"), 64)
	if err != nil {
		return nil, err
	}
	name := "tool-" + tool.Name
	consumer, err := mesh.jetstream.Consumer(ctx, "TOOLS", name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		consumer, err = mesh.jetstream.CreateConsumer(ctx, "TOOLS", jetstream.ConsumerConfig{
			Durable: name, FilterSubject: "tools." + tool.Name, AckPolicy: jetstream.AckExplicitPolicy,
			AckWait: time.Duration(ackWaitSeconds * float64(time.Second)), MaxDeliver: 10, MaxAckPending: 10_000, MaxWaiting: 10_000,
			InactiveThreshold: 24 * time.Hour, // the consumer of a tool that nobody serves any more goes by itself
		})
	}
	return consumer, err
}

// declare tells the mesh of a tool.
func (mesh *Mesh) declare(ctx context.Context, tool Tool) error {
	declaration, err := mesh.schemas.encode("tool_declaration", map[string]any{
		"name": tool.Name, "description": tool.Description, "parameters": parse([]byte(tool.Parameters)),
		"timeout_seconds": tool.Timeout.Seconds(), "idempotent": tool.Idempotent,
		"destructive": tool.Destructive, "approval": tool.Approval,
	})
	if err != nil {
		return err
	}
	_, err = mesh.jetstream.Publish(ctx, "$KV.tools."+tool.Name, declaration)
	return err
}

func (mesh *Mesh) keepDeclared(stopping context.Context, tool Tool) {
	ticks := time.NewTicker(declareEach)
	defer ticks.Stop()
	for {
		select {
		case <-stopping.Done():
			return
		case <-ticks.C:
			_, err := mesh.bind(stopping, tool) // it is gone if nobody could pull for a day
			if err == nil {
				err = mesh.declare(stopping, tool)
			}
			if err != nil {
				log.Printf("%s: not declared: %s", tool.Name, err)
			}
		}
	}
}

// pull takes one call after the other: never more than is run at once, since a lease runs from the delivery on.
func (mesh *Mesh) pull(stopping context.Context, tool Tool, consumer jetstream.Consumer) {
	ackWait := consumer.CachedInfo().Config.AckWait
	for stopping.Err() == nil {
		message, err := consumer.Next(jetstream.FetchMaxWait(idlePull))
		if err == nil {
			err = mesh.handle(context.Background(), tool, message, ackWait)
		}
		if err != nil && !errors.Is(err, nats.ErrTimeout) && !errors.Is(err, jetstream.ErrNoMessages) {
			log.Printf("%s: %s", tool.Name, err) // what is not answered comes back after its lease
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// asText is a payload as a dead letter keeps it, and how that is to be read.
func asText(payload []byte) (text, encoding string) {
	if utf8.Valid(payload) {
		return string(payload), "utf-8"
	}
	return base64.StdEncoding.EncodeToString(payload), "base64"
}
