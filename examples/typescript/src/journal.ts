// The journal of one task: reading it, and the one way to add to it.

import { setTimeout as sleep } from "node:timers/promises";
import { Refusal, type Broker } from "./broker.js";
import { State } from "./state.js";
import { newId, now, type Json, type Schemas, type Work } from "./wire.js";

const NO_MESSAGE_FOUND = 10037;
const WRONG_LAST_SEQUENCE = [10071, 10164];

/** The journal has moved on, so that an event is not right any more. */
export class Lost extends Error {}

/** The read was stale: nothing may be appended to what it folds to. */
class Hole extends Error {}

export class Journal {
  readonly state = new State();
  readonly #subject: string;

  constructor(readonly broker: Broker, readonly schemas: Schemas, readonly work: Work, readonly traceparent?: string) {
    this.#subject = `events.${work.tenant}.${work.task}`;
  }

  /** Read and fold what was written since; returns the ids of those events. */
  async catchUp(): Promise<Set<string>> {
    const ids = new Set<string>();
    for (let more = true; more; ) {
      const page = await this.broker.page(`${this.#subject}.*`, this.state.revision);
      for (const message of page.messages) {
        const event = this.schemas.decodeEvent(message.data);
        this.state.fold(Number(message.headers?.get("Nats-Sequence")), event);
        ids.add(String(event.id));
      }
      more = page.more;
    }
    if (this.state.hole) throw new Hole("the journal has a hole");
    return ids;
  }

  /** Ask the stream's leader, who alone may say that there is no such call. */
  async isBehind(): Promise<boolean> {
    return (await this.#lastSequence("log")) > this.state.revision;
  }

  /** What the stream's leader has; 0 if it has nothing. */
  async #lastSequence(part: string): Promise<number> {
    try {
      const last = await this.broker.api("STREAM.MSG.GET.EVENTS", { last_by_subj: `${this.#subject}.${part}` });
      return last.message.seq;
    } catch (error) {
      if (error instanceof Refusal && error.number === NO_MESSAGE_FOUND) return 0;
      throw error;
    }
  }

  /** Store one event, if nobody has written since, and return its id. `stillRight` judges anew after each conflict: Lost
   *  if it says no. */
  async append(event: Json, stillRight: () => boolean): Promise<string> {
    const id = newId(); // one append keeps its id over all tries
    for (let tries = 0; ; tries++) {
      if (!stillRight()) throw new Lost("the journal has moved on");
      const { task, tenant } = this.work;
      const whole = { ...event, id, task, tenant, n: this.state.nextN, time: now() };
      const payload = this.schemas.encode(String(event.type), whole);
      try {
        const sequence = await this.broker.publish(`${this.#subject}.log`, payload, {
          "Nats-Expected-Last-Subject-Sequence": String(this.state.revision),
          "Nats-Expected-Last-Subject-Sequence-Subject": `${this.#subject}.*`,
          traceparent: this.traceparent,
        });
        this.state.fold(sequence, JSON.parse(payload));
        return id;
      } catch (error) {
        if (error instanceof Refusal && !WRONG_LAST_SEQUENCE.includes(error.number)) throw error; // it is full, say
      }
      if (tries > 0) await sleep(Math.random() * 1000);
      try {
        // Somebody was faster, or nobody knows whether it was stored: the journal tells.
        const ids = await this.catchUp();
        if (ids.has(id)) return id;
        // Nothing new to read: a stale read, or the journal that was folded is there no more.
        if (ids.size === 0 && (await this.#lastSequence("*")) < this.state.revision) throw new Lost("the journal is gone");
      } catch (error) {
        if (error instanceof Hole || error instanceof Lost) throw error;
      }
    }
  }
}
