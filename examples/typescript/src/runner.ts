// One delivery: check it, fold its journal, decide, claim, run, record, publish what is due, ack.

import type { Msg } from "@nats-io/transport-node";
import type { ValidateFunction } from "ajv/dist/2020.js";
import { Refusal, type Broker } from "./broker.js";
import { Journal, Lost } from "./journal.js";
import { decide, movedWork, nextTurn, retryTimer, stepGen, type Due, type State } from "./state.js";
import { Refused, type Tool } from "./tools.js";
import { complaint, newId, now, ofAnotherVersion, type ErrorInfo, type Json, type Schemas, type Work } from "./wire.js";

const RESULT_BYTES_MAX = 256 * 1024;
const LATER_NANOSECONDS = 200_000_000;
const LATER_DELIVERIES_MAX = 8;
const LEFT_NANOSECONDS_MAX = 10_000_000_000;

/** In milliseconds: the wall clock goes on while the machine sleeps, and nobody sets the other one. */
function clocks(): number[] {
  return [Date.now(), performance.now()];
}

/** A message in this process's hands, and the lease on it. */
class Delivery {
  readonly stream: string;
  readonly deliveries: number;
  readonly sequence: number;
  readonly storedSeconds: number;
  readonly #reply: string;
  readonly #heartbeats: NodeJS.Timeout;
  #leasedAt = clocks();

  constructor(readonly broker: Broker, readonly message: Msg, readonly ackWaitMilliseconds: number) {
    this.#reply = message.reply ?? "";
    // $JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.<consumer sequence>.<time>.<pending> (NATS ADR-15), which
    // has two tokens more, a domain and an account, behind $JS.ACK where the server is of a domain.
    const [, delivered, sequence, , nanoseconds] = this.#reply.split(".").slice(this.#reply.split(".").length > 9 ? 5 : 3);
    this.stream = "TOOLS";
    this.deliveries = Number(delivered);
    this.sequence = Number(sequence);
    this.storedSeconds = Math.trunc(Number(nanoseconds) / 1000) / 1e6;
    this.#heartbeats = setInterval(() => this.#beat(), ackWaitMilliseconds / 3);
  }

  get held(): boolean {
    return clocks().every((at, which) => at - this.#leasedAt[which]! <= this.ackWaitMilliseconds);
  }

  #beat(): void {
    if (!this.held) return this.end(); // whose lease is over sends nothing more
    try {
      this.broker.demandConnection();
      this.#leasedAt = clocks();
      this.broker.connection.publish(this.#reply, "+WPI");
    } catch {
      // The lease runs out, or the next heartbeat gets through.
    }
  }

  /** The last word on a delivery; returns once the broker has it: a double ack. */
  async answer(word: string): Promise<void> {
    if (!this.held) throw new Lost("the lease is over");
    await this.broker.request(this.#reply, word);
  }

  nak(nanoseconds: number): void {
    if (this.held) this.broker.connection.publish(this.#reply, `-NAK {"delay":${nanoseconds}}`);
  }

  end(): void {
    clearInterval(this.#heartbeats);
  }
}

export class Runner {
  readonly #parameters: ValidateFunction;

  constructor(
    readonly broker: Broker,
    readonly schemas: Schemas,
    readonly tool: Tool,
    readonly worker: string,
    readonly folder: string,
    readonly ackWaitMilliseconds: number,
  ) {
    this.#parameters = schemas.compile(tool.parameters);
  }

  async handle(message: Msg): Promise<void> {
    const delivery = new Delivery(this.broker, message, this.ackWaitMilliseconds);
    try {
      await this.#handle(delivery);
    } finally {
      delivery.end();
    }
  }

  async #handle(delivery: Delivery): Promise<void> {
    const { message } = delivery;
    let work: Work;
    try {
      work = this.schemas.decodeWork(message.data, message.subject);
    } catch (error) {
      if (ofAnotherVersion(message.data, message.subject)) return this.#leave(delivery, error);
      return this.#refuse(delivery, { code: "malformed-message", message: String(error) });
    }
    const journal = new Journal(this.broker, this.schemas, work, message.headers?.get("traceparent"));
    await journal.catchUp();
    for (;;) {
      switch (decide(journal.state, work, delivery.sequence)) {
        case "claim": {
          const claim = await this.#claim(work, journal, delivery);
          if (claim !== undefined) return this.#perform(work, journal, delivery, claim);
          break; // something else is to be done: decide again
        }
        case "settle":
          return this.#settle(work, journal, delivery);
        case "waits":
          return this.#finish(retryTimer(journal.state, work), journal, delivery);
        case "moved":
          return this.#finish(movedWork(journal.state, work), journal, delivery);
        case "drop":
          return delivery.answer("+ACK");
        case "later":
          return this.#later(work, journal, delivery);
        case "deadLettered":
          await this.#deadLetter(delivery, journal.state.letter(stepGen(work.call, work.gen))!, work);
          return delivery.answer("+TERM dead letter");
        case "refuse":
          if (await journal.isBehind()) return delivery.nak(LATER_NANOSECONDS);
          return this.#refuse(delivery, { code: "call-unknown", message: `no turn of the journal asked for call ${work.call}` });
      }
    }
  }

  /** Claim the call; returns the claim's id, or undefined if the journal has moved on. */
  async #claim(work: Work, journal: Journal, delivery: Delivery): Promise<string | undefined> {
    const { call, tool, gen, turn } = work;
    const { sequence, deliveries } = delivery;
    const event = { type: "step.claimed", step: call, gen, message: sequence, worker: this.worker, delivery: deliveries, turn, call, tool };
    try {
      return await journal.append(event, () => delivery.held && decide(journal.state, work, sequence) === "claim");
    } catch (error) {
      if (error instanceof Lost && delivery.held) return undefined;
      throw error;
    }
  }

  /** Run a claimed call, and record what came of it. */
  async #perform(work: Work, journal: Journal, delivery: Delivery, claim: string): Promise<void> {
    const began = performance.now();
    const { turn, call, tool } = work;
    const event: Json = { ...(await this.#run(work, journal.state)), turn, call, tool };
    if (event.type === "tool.completed") event.timings = { total_seconds: (performance.now() - began) / 1000 };
    try {
      await journal.append(event, () => delivery.held && journal.state.owns(work, claim));
    } catch (error) {
      // If the task was ended from outside, nobody else has its message. Else the step is lost: nothing more is sent.
      if (!(error instanceof Lost && journal.state.ended && journal.state.isLastClaim(work, claim))) throw error;
    }
    console.error(`${work.task} ${call}: ${String(event.type)}`);
    return this.#settle(work, journal, delivery);
  }

  /** The call itself; its end is an event without the fields that say whose it is. */
  async #run(work: Work, state: State): Promise<Json> {
    const { tool } = this;
    const outcome = tool.idempotent ? "failed" : "unknown"; // an attempt that broke may have had its effect
    const given = state.asked(work)?.arguments;
    if (!this.#parameters(given)) return failed("tool-arguments-invalid", complaint(this.#parameters.errors), "failed");
    if (!tool.idempotent && (state.claims.get(stepGen(work.call, work.gen))?.length ?? 0) > 1) {
      return failed("tool-outcome-unknown", "an earlier attempt may have had its effect", "unknown");
    }
    const limit = AbortSignal.timeout(tool.timeoutSeconds * 1000);
    const late = new Promise<never>((_, reject) => limit.addEventListener("abort", () => reject(limit.reason as Error)));
    try {
      const result = (await Promise.race([tool.run(this.folder, given, limit), late])) ?? null;
      const bytes = Buffer.byteLength(JSON.stringify(result));
      return bytes > RESULT_BYTES_MAX ? failed("result-too-large", `${bytes} bytes`, outcome) : { type: "tool.completed", result };
    } catch (error) {
      if (limit.aborted) return failed("tool-timeout", `no result within ${tool.timeoutSeconds} s`, outcome);
      if (error instanceof Refused) return failed("tool-refused", error.message, "failed");
      return failed("tool-error", String(error), outcome);
    }
  }

  /** Publish what is due, and ack. All of it may be done twice. */
  async #settle(work: Work, journal: Journal, delivery: Delivery): Promise<void> {
    return this.#finish(nextTurn(journal.state, work), journal, delivery);
  }

  async #finish(due: Due | undefined, journal: Journal, delivery: Delivery): Promise<void> {
    if (due !== undefined) {
      const fields = { ...due.fields, traceparent: journal.traceparent };
      await this.broker.publish(due.subject, this.schemas.encode(due.name, due.payload), fields);
    }
    await delivery.answer("+ACK");
  }

  async #later(work: Work, journal: Journal, delivery: Delivery): Promise<void> {
    if (delivery.deliveries < LATER_DELIVERIES_MAX || (await journal.isBehind())) return delivery.nak(LATER_NANOSECONDS);
    return this.#refuse(delivery, { code: "journal-missing", message: `no journal fits call ${work.call}` });
  }

  /** Give a message that this program does not understand to another. The steward gives it up if none does. */
  #leave(delivery: Delivery, because: unknown): void {
    console.error(`message ${delivery.sequence} left to another: ${String(because)}`);
    delivery.nak(Math.min(LEFT_NANOSECONDS_MAX, 1e9 * 2 ** (delivery.deliveries - 1)));
  }

  /** Take a message that nobody can carry out from its queue, its dead letter first. */
  async #refuse(delivery: Delivery, because: ErrorInfo): Promise<void> {
    console.error(`message ${delivery.sequence} refused: ${because.code}: ${because.message}`);
    await this.#deadLetter(delivery, because);
    await delivery.answer(`+TERM ${because.code}`);
  }

  /** Write the record of a step that gave up, or, without work, that of a message that fits nothing. */
  async #deadLetter(delivery: Delivery, because: ErrorInfo, work?: Work): Promise<void> {
    const { stream, sequence, deliveries, message } = delivery;
    const text = Buffer.from(message.data).toString("utf-8");
    const isText = Buffer.from(text, "utf-8").equals(message.data);
    const payload = this.schemas.encode("dead_letter", {
      id: newId(), time: now(), stream, subject: message.subject, sequence, deliveries, worker: this.worker, errors: [because],
      message: isText ? text : Buffer.from(message.data).toString("base64"), message_encoding: isText ? "utf-8" : "base64",
      tenant: work?.tenant, task: work?.task, step: work?.call, gen: work?.gen,
    });
    const id = work ? `${work.task}.${work.call}.g${work.gen}.dead` : `${stream}.${sequence}.${delivery.storedSeconds}.dead`;
    const subject = work ? `dead.${work.tenant}.${work.task}` : "dead._.malformed";
    await this.broker.publish(subject, payload, { "Nats-Msg-Id": id });
  }
}

function failed(code: string, message: string, outcome: "failed" | "unknown"): Json {
  return { type: "tool.failed", error: { code, message }, outcome };
}

/** See to it that a tool has its consumer: one that is there keeps its settings. Returns its ack_wait in milliseconds. */
export async function bindConsumer(broker: Broker, tool: Tool, ackWaitSeconds: number): Promise<number> {
  const name = `tool-${tool.name}`;
  let info: any;
  try {
    info = await broker.api(`CONSUMER.INFO.TOOLS.${name}`, {});
  } catch (error) {
    if (!(error instanceof Refusal && error.number === 10014)) throw error;
    const config = {
      durable_name: name, name, filter_subject: `tools.${tool.name}`, deliver_policy: "all", ack_policy: "explicit",
      ack_wait: Math.round(ackWaitSeconds * 1e9), max_deliver: 10, max_ack_pending: 10_000, max_waiting: 10_000,
      inactive_threshold: 24 * 3600 * 1e9, // the consumer of a tool that nobody serves any more goes by itself
    };
    info = await broker.api(`CONSUMER.CREATE.TOOLS.${name}.tools.${tool.name}`, { stream_name: "TOOLS", config });
  }
  return info.config.ack_wait / 1e6;
}

/** Tell the mesh of a tool: models are offered it from then on. */
export async function declare(broker: Broker, schemas: Schemas, tool: Tool): Promise<void> {
  const { name, description, parameters, idempotent, destructive, approval } = tool;
  const declaration = { name, description, parameters, timeout_seconds: tool.timeoutSeconds, idempotent, destructive, approval };
  await broker.publish(`$KV.tools.${name}`, schemas.encode("tool_declaration", declaration), {});
}
